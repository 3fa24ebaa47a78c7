#include "farrier/Analysis/ValueKey.h"

#include "mlir/IR/Block.h"
#include "mlir/IR/Operation.h"

using namespace mlir;

namespace farrier {

std::string nameStack(Location loc) {
  if (auto name = dyn_cast<NameLoc>(loc))
    return name.getName().str();
  if (auto fused = dyn_cast<FusedLoc>(loc)) {
    for (Location inner : fused.getLocations())
      if (std::string text = nameStack(inner); !text.empty())
        return text;
  }
  if (auto call = dyn_cast<CallSiteLoc>(loc))
    return nameStack(call.getCallee());
  return "";
}

bool isNamed(Operation *op, const std::vector<std::string> &texts) {
  if (texts.empty())
    return false;
  std::string stack = nameStack(op->getLoc());
  return llvm::any_of(texts, [&](const std::string &text) { return StringRef(stack).contains(text); });
}

std::string sourceLine(Location loc) {
  if (auto file = dyn_cast<FileLineColLoc>(loc)) {
    StringRef path = file.getFilename().getValue();
    if (path == "-") // a line of the module's text, not of anybody's source
      return "";
    return (path.rsplit('/').second.empty() ? path : path.rsplit('/').second).str() + ":" +
           std::to_string(file.getLine());
  }
  if (auto name = dyn_cast<NameLoc>(loc))
    return sourceLine(name.getChildLoc());
  if (auto call = dyn_cast<CallSiteLoc>(loc))
    return sourceLine(call.getCallee());
  if (auto fused = dyn_cast<FusedLoc>(loc))
    for (Location inner : fused.getLocations())
      if (std::string text = sourceLine(inner); !text.empty())
        return text;
  return "";
}

ValueKeys::ValueKeys(Block &block) {
  llvm::StringMap<unsigned> seen;
  auto add = [&](Value value, std::string text) {
    unsigned ordinal = seen[text]++;
    text += "|" + std::to_string(ordinal);
    values[text] = value;
    keys[value] = std::move(text);
  };
  for (BlockArgument arg : block.getArguments())
    add(arg, "argument:" + std::to_string(arg.getArgNumber()));
  // Printing a type is slow and there are few of them.
  llvm::DenseMap<Type, std::string> typeText;
  for (Operation &op : block) {
    if (op.getNumResults() == 0)
      continue;
    std::string stem = nameStack(op.getLoc()) + "|" + op.getName().getStringRef().str();
    for (OpResult result : op.getResults()) {
      std::string &type = typeText[result.getType()];
      if (type.empty()) {
        llvm::raw_string_ostream os(type);
        os << result.getType();
      }
      add(result, stem + ":" + std::to_string(result.getResultNumber()) + "|" + type);
    }
  }
}

StringRef ValueKeys::key(Value value) const {
  auto it = keys.find(value);
  return it == keys.end() ? StringRef() : StringRef(it->second);
}

Value ValueKeys::lookup(StringRef key) const {
  auto it = values.find(key);
  return it == values.end() ? Value() : it->second;
}

} // namespace farrier
