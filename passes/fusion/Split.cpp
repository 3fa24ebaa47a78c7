#include "passes/fusion/Split.h"

#include "mlir/AsmParser/AsmParser.h"

using namespace mlir;

namespace farrier::fusion {

std::optional<Split> Split::parse(StringRef text, std::string &whyNot) {
  auto [code, axis] = text.split(':');
  if (code == "!positions")
    whyNot = ("mesh axis '" + axis + "' splits positions, which the kernel needs whole").str();
  else if (code == "!width")
    whyNot = ("mesh axis '" + axis + "' splits the width of heads, which the kernel needs whole").str();
  else if (code.starts_with("!"))
    whyNot = "how its operands are split over devices is nothing that a kernel can follow (" +
             code.drop_front().str() + ")";
  SmallVector<StringRef> parts, axes;
  text.split(parts, '|');
  if (!whyNot.empty() || parts.size() != 4) {
    if (whyNot.empty())
      whyNot = ("attention-split cannot be read: '" + text + "'").str();
    return std::nullopt;
  }
  Split split;
  split.mesh = parts[0].str();
  parts[1].split(axes, '+', -1, /*KeepEmpty=*/false);
  for (StringRef named : axes) {
    auto [name, size] = named.rsplit(':');
    int64_t number = 0;
    if (size.getAsInteger(10, number) || number < 1) {
      whyNot = ("attention-split cannot be read: '" + text + "'").str();
      return std::nullopt;
    }
    split.manual.emplace_back(name.str(), number);
  }
  for (auto [part, list] : {std::pair(parts[2], &split.batch), std::pair(parts[3], &split.heads)}) {
    axes.clear();
    part.split(axes, '+', -1, /*KeepEmpty=*/false);
    for (StringRef name : axes)
      list->push_back(name.str());
  }
  return split;
}

int64_t Split::shards(ArrayRef<std::string> axes) const {
  int64_t product = 1;
  for (auto &[name, size] : manual)
    if (llvm::is_contained(axes, name))
      product *= size;
  return product;
}

std::optional<int64_t> Split::keyRepeats(int64_t heads_, int64_t keyHeads) const {
  for (int64_t repeats = 1; keyHeads * repeats <= heads_; ++repeats)
    if (keyHeads * repeats % headShards() == 0 && heads_ % (keyHeads * repeats) == 0)
      return repeats;
  return std::nullopt;
}

RankedTensorType Split::local(const SplitType &type) const {
  SmallVector<int64_t> shape(type.shape);
  for (auto [size, axis] : llvm::zip(shape, type.axes))
    size /= axis == 'b' ? batchShards() : axis == 'h' ? headShards() : 1;
  return RankedTensorType::get(shape, type.element);
}

std::string Split::sharding(StringRef axes) const {
  std::string text;
  llvm::raw_string_ostream os(text);
  os << "<@" << mesh << ", [";
  llvm::interleaveComma(axes, os, [&](char axis) {
    os << '{';
    if (axis == 'b' || axis == 'h')
      llvm::interleaveComma(axis == 'b' ? batch : heads, os,
                            [&](const std::string &name) { os << '"' << name << '"'; });
    os << '}';
  });
  os << "]>";
  return text;
}

SmallVector<Value> onEveryDevice(Maker &make, const Split &split, ArrayRef<SplitValue> operands,
                                 ArrayRef<SplitType> results,
                                 llvm::function_ref<SmallVector<Value>(Maker &, ValueRange)> body) {
  MLIRContext *context = make.b.getContext();
  SmallVector<Value> values;
  SmallVector<Type> globals, locals;
  std::string in, out, axes;
  llvm::raw_string_ostream inText(in), outText(out), axesText(axes);
  for (const SplitValue &operand : operands) {
    auto type = cast<RankedTensorType>(operand.value.getType());
    values.push_back(operand.value);
    locals.push_back(
        split.local({llvm::to_vector(type.getShape()), type.getElementType(), operand.axes, false}));
  }
  for (const SplitType &result : results)
    globals.push_back(RankedTensorType::get(result.shape, result.element));
  llvm::interleaveComma(operands, inText,
                        [&](const SplitValue &each) { inText << split.sharding(each.axes); });
  llvm::interleaveComma(results, outText,
                        [&](const SplitType &each) { outText << split.sharding(each.axes); });
  llvm::interleaveComma(split.manual, axesText, [&](auto &axis) { axesText << '"' << axis.first << '"'; });
  auto parsed = [&](const Twine &text) { return parseAttribute(text.str(), context); };
  OperationState state(make.loc, "sdy.manual_computation");
  state.addOperands(values);
  state.addTypes(globals);
  state.propertiesAttr = make.b.getDictionaryAttr(
      {make.attr("in_shardings", parsed("#sdy.sharding_per_value<[" + in + "]>")),
       make.attr("manual_axes", parsed("#sdy<manual_axes{" + axes + "}>")),
       make.attr("out_shardings", parsed("#sdy.sharding_per_value<[" + out + "]>"))});
  Block &block = state.addRegion()->emplaceBlock();
  block.addArguments(locals, SmallVector<Location>(locals.size(), make.loc));
  Operation *manual = make.b.create(state);
  OpBuilder builder = OpBuilder::atBlockEnd(&manual->getRegion(0).front());
  Maker inside(builder, make.loc);
  inside.op("sdy.return", {}, body(inside, manual->getRegion(0).front().getArguments()));
  return llvm::to_vector_of<Value>(manual->getResults());
}

} // namespace farrier::fusion
