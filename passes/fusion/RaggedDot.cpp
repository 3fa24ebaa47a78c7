//===- RaggedDot.cpp - jax.lax.ragged_dot to a grouped matrix product -----===//
//
// XLA:GPU computes a ragged product as one masked dense product per group: as many times the work as there
// are groups. A kernel that looks up each tile's group does it once.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Build.h"
#include "passes/fusion/Fusion.h"
#include "passes/fusion/GroupedKernel.h"

#include "farrier/Analysis/RaggedDot.h"

#include "llvm/ADT/StringExtras.h"

using namespace mlir;

namespace farrier::fusion {

namespace {

using Numbers = llvm::StringMap<SmallVector<int64_t>>;

struct Ragged {
  GroupedProduct product;
  std::string reason; ///< why it cannot be substituted; empty if it can
};

int64_t only(const Numbers &numbers, StringRef name) {
  auto found = numbers.find(name);
  return found != numbers.end() && found->second.size() == 1 ? found->second[0] : -1;
}

Ragged read(Operation *op, const Settings &settings) {
  Ragged site;
  GroupedProduct &p = site.product;
  auto refuse = [&](const Twine &reason) {
    site.reason = reason.str();
    return site;
  };
  std::optional<Numbers> numbers = raggedNumbers(op);
  if (op->getNumOperands() != 3 || op->getNumResults() != 1 || !numbers)
    return refuse("its dimension numbers are written in a way not known here");
  auto type = [](Value value) { return dyn_cast<RankedTensorType>(value.getType()); };
  RankedTensorType lhs = type(op->getOperand(0)), rhs = type(op->getOperand(1)),
                   sizes = type(op->getOperand(2)), result = type(op->getResult(0));
  if (!lhs || !rhs || !sizes || !result || !lhs.hasStaticShape() || !rhs.hasStaticShape() ||
      !sizes.hasStaticShape())
    return refuse("a shape is not known");
  if (!sizes.getElementType().isInteger(32) || sizes.getRank() != 1)
    return refuse("the group sizes are not a vector of int32");
  if (!numbers->lookup("lhs_batching_dimensions").empty() || lhs.getRank() != 2)
    return refuse("it has batch dimensions, or more than one free dimension");
  int64_t row = only(*numbers, "lhs_ragged_dimensions"),
          contracted = only(*numbers, "lhs_contracting_dimensions"),
          other = only(*numbers, "rhs_contracting_dimensions"),
          group = only(*numbers, "rhs_group_dimensions");
  if (row < 0 || contracted < 0 || other < 0 || row > 1 || contracted > 1)
    return refuse("it contracts more than one dimension, or none");
  p.sums = row == contracted;
  p.m = lhs.getDimSize(row);
  p.g = sizes.getDimSize(0);
  p.element = lhs.getElementType();
  p.result = result.getElementType();
  p.k = lhs.getDimSize(p.sums ? 1 - row : contracted);
  p.lhs = row == 0 ? "mk" : "km";
  if (p.sums) {
    if (rhs.getRank() != 2)
      return refuse("it has batch dimensions, or more than one free dimension");
    p.rhs = other == 0 ? "mn" : "nm";
    p.n = rhs.getDimSize(1 - other);
  } else {
    if (rhs.getRank() != 3 || group < 0 || group == other || rhs.getDimSize(group) != p.g)
      return refuse("its weights are not one matrix per group");
    p.rhs = "nnn";
    p.rhs[group] = 'g';
    p.rhs[other] = 'k';
    p.n = rhs.getDimSize(3 - group - other);
  }
  bool half = p.element.isBF16() || p.element.isF16();
  if (rhs.getElementType() != p.element || !(half || p.element.isF32()) ||
      !(p.result == p.element || p.result.isF32()))
    return refuse("the kernel multiplies bf16, f16 or f32 and gives the same type or f32");
  std::string precision;
  auto attributes = dyn_cast_or_null<DictionaryAttr>(op->getPropertiesAsAttribute());
  if (attributes && attributes.get("precision_config"))
    llvm::raw_string_ostream(precision) << attributes.get("precision_config");
  if (p.element.isF32() && (StringRef(precision).contains("HIGH")))
    return refuse("a precision above the default is asked for");
  if (p.m == 0 || p.g == 0 || p.k == 0 || p.n == 0)
    return refuse("it is empty");
  if (settings.partitions > 1 && !isLocal(op))
    return refuse(
        "under automatic sharding XLA would gather a custom call's operands on every device; shard_map "
        "keeps them where they are");
  if (settings.numerics == Numerics::Bitwise)
    return refuse("a kernel adds in another order, which numerics=bitwise does not allow");
  GroupedTiling tiling = tile(p);
  // Limits of a CUDA grid, and of the 32-bit offsets inside one tile.
  if (tiling.grid[1] > 65535 || tiling.grid[2] > 65535 || p.m > (int64_t(1) << 30) ||
      std::max({p.m, p.k, p.n}) * 128 >= (int64_t(1) << 31))
    return refuse("it is larger than one kernel's grid or offsets");
  if (tiling.flops >= tiling.denseFlops)
    return refuse("so few rows in a group that the dense product does no more work");
  return site;
}

void substitute(Operation *op, const GroupedProduct &product) {
  GroupedTiling tiling = tile(product);
  OpBuilder b(op);
  Maker make(b, op->getLoc());
  auto number = [&](StringRef name, int64_t value) { return make.attr(name, b.getI32IntegerAttr(value)); };
  std::string name = kernelName(product, tiling);
  DictionaryAttr config = b.getDictionaryAttr(
      {make.attr("name", b.getStringAttr(name)),
       make.attr("ir", b.getStringAttr(kernelText(product, tiling))), number("grid_x", tiling.grid[0]),
       number("grid_y", tiling.grid[1]), number("grid_z", tiling.grid[2]), number("num_warps", tiling.warps),
       number("num_stages", tiling.stages), make.attr("debug", b.getBoolAttr(false))});
  auto layout = [&](Value value) -> Attribute {
    SmallVector<int64_t> order;
    for (int64_t dim = cast<RankedTensorType>(value.getType()).getRank() - 1; dim >= 0; --dim)
      order.push_back(dim);
    return DenseElementsAttr::get(RankedTensorType::get({int64_t(order.size())}, b.getIndexType()),
                                  ArrayRef<int64_t>(order));
  };
  SmallVector<Attribute> layouts;
  for (Value operand : op->getOperands())
    layouts.push_back(layout(operand));
  Operation *call =
      make.op("stablehlo.custom_call", op->getResultTypes(), op->getOperands(),
              {make.attr("call_target_name", b.getStringAttr("__gpu$xla.gpu.triton")),
               make.attr("backend_config", config), make.attr("api_version", b.getI32IntegerAttr(4)),
               make.attr("operand_layouts", b.getArrayAttr(layouts)),
               make.attr("result_layouts", b.getArrayAttr(layout(op->getResult(0))))});
  if (Attribute frontend = op->getDiscardableAttr("mhlo.frontend_attributes"))
    call->setDiscardableAttr("mhlo.frontend_attributes", frontend);
  op->replaceAllUsesWith(call);
  op->erase();
}

} // namespace

unsigned rewriteRaggedDot(ModuleOp module, const Settings &settings) {
  SmallVector<Operation *> candidates;
  module.walk([&](Operation *op) {
    if (op->getName().getStringRef() == "chlo.ragged_dot")
      candidates.push_back(op);
  });
  unsigned applied = 0;
  for (Operation *op : candidates) {
    Ragged site = read(op, settings);
    if (site.reason.empty() && isForbidden(op, /*kernel=*/true))
      site.reason = "a hint forbids it";
    if (!site.reason.empty()) {
      missed(op, "ragged-dot", site.reason);
      continue;
    }
    const GroupedProduct &p = site.product;
    GroupedTiling tiling = tile(p);
    double once = 2.0 * p.m * p.k * p.n;
    remark::passed(op->getLoc(), remark::RemarkOpts::name("ragged-dot").category("fusion"))
        << ("becomes a grouped matrix product over " + Twine(p.g) + " groups").str()
        << remark::metric("WorkOverIdeal", tiling.flops / once)
        << remark::metric("Bound", p.element.isF32() ? "TF32 products as XLA's default, f32 accumulation"
                                                     : "exact products, f32 accumulation");
    substitute(op, p);
    ++applied;
  }
  return applied;
}

} // namespace farrier::fusion
