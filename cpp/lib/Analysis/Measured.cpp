#include "farrier/Analysis/Measured.h"

#include "farrier/Analysis/Sharding.h"

#include "mlir/IR/Builders.h"

using namespace mlir;

namespace farrier {

static constexpr llvm::StringLiteral storedAttr = "farrier.stored", extraAttr = "farrier.extra";

std::optional<bool> measuredStored(Operation *op) {
  if (auto attribute = dyn_cast_or_null<BoolAttr>(op->getDiscardableAttr(storedAttr)))
    return attribute.getValue();
  return std::nullopt;
}

int64_t measuredExtra(Operation *op) {
  auto attribute = dyn_cast_or_null<IntegerAttr>(op->getDiscardableAttr(extraAttr));
  return attribute ? attribute.getInt() : 0;
}

void setMeasured(ModuleOp module, const llvm::json::Object &given) {
  Builder builder(module.getContext());
  const llvm::json::Object *stored = given.getObject("stored"), *extra = given.getObject("extra");
  forEachNumbered(module, [&](Operation *op, int64_t number) {
    std::string name = std::to_string(number);
    if (std::optional<bool> is = stored ? stored->getBoolean(name) : std::nullopt)
      op->setDiscardableAttr(storedAttr, builder.getBoolAttr(*is));
    if (std::optional<int64_t> bytes = extra ? extra->getInteger(name) : std::nullopt)
      op->setDiscardableAttr(extraAttr, builder.getI64IntegerAttr(*bytes));
  });
}

DictionaryAttr attributesBesideMeasured(Operation *op) {
  NamedAttrList attributes(op->getDiscardableAttrDictionary());
  attributes.erase(storedAttr);
  attributes.erase(extraAttr);
  return attributes.getDictionary(op->getContext());
}

void scaleMeasuredExtra(Operation *op, double share) {
  if (int64_t bytes = measuredExtra(op))
    op->setDiscardableAttr(extraAttr,
                           Builder(op->getContext()).getI64IntegerAttr(static_cast<int64_t>(bytes * share)));
}

void dropMeasuredExtra(Operation *op) { op->removeDiscardableAttr(extraAttr); }

} // namespace farrier
