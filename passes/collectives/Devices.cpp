#include "passes/collectives/Devices.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/SymbolTable.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/raw_ostream.h"

using namespace mlir;

namespace farrier::collectives {

static constexpr int64_t kMostDevices = 1 << 20;

namespace {
struct Mesh {
  SmallVector<std::string> names;
  SmallVector<int64_t> sizes;
  SmallVector<int64_t> devices; ///< by position, the last axis fastest

  int64_t axis(StringRef name) const {
    auto it = llvm::find(names, name);
    return it == names.end() ? -1 : it - names.begin();
  }
  int64_t coordinate(int64_t position, int64_t axis) const {
    for (int64_t a = static_cast<int64_t>(sizes.size()) - 1; a > axis; --a)
      position /= sizes[a];
    return position % sizes[axis];
  }
};
} // namespace

static std::string textOf(Attribute attribute) {
  std::string text;
  llvm::raw_string_ostream(text) << attribute;
  return text;
}

/// The quoted words of a text.
static SmallVector<std::string> quoted(StringRef text) {
  SmallVector<std::string> found;
  while (true) {
    size_t from = text.find('"');
    size_t to = from == StringRef::npos ? from : text.find('"', from + 1);
    if (to == StringRef::npos)
      return found;
    found.push_back(text.slice(from + 1, to).str());
    text = text.drop_front(to + 1);
  }
}

/// `["x"=4, "y"=2]` with, where devices are not in order, `, device_ids=[...]`. Shardy's attributes are opaque here.
static std::optional<Mesh> parseMesh(StringRef text) {
  Mesh mesh;
  auto [axes, rest] = text.split(']');
  int64_t count = 1;
  for (StringRef entry : llvm::split(axes.split('[').second, ',')) {
    auto [name, size] = entry.trim().split('=');
    int64_t number = 0;
    if (size.trim().getAsInteger(10, number) || number < 1 || count > (int64_t(1) << 32) / number)
      return std::nullopt;
    mesh.names.push_back(name.trim().trim('"').str());
    mesh.sizes.push_back(number);
    count *= number;
  }
  if (count > kMostDevices)
    return std::nullopt;
  if (rest.contains("device_ids")) {
    for (StringRef entry : llvm::split(rest.split('[').second.split(']').first, ',')) {
      int64_t id = 0;
      if (entry.trim().getAsInteger(10, id))
        return std::nullopt;
      mesh.devices.push_back(id);
    }
    // Every device once, or positions mean nothing.
    SmallVector<int64_t> sorted(mesh.devices);
    llvm::sort(sorted);
    if (static_cast<int64_t>(sorted.size()) != count || !llvm::equal(sorted, llvm::seq<int64_t>(0, count)))
      return std::nullopt;
  } else {
    llvm::append_range(mesh.devices, llvm::seq<int64_t>(0, count));
  }
  return mesh;
}

static std::optional<Mesh> findMesh(ModuleOp module, StringRef name) {
  for (Operation &op : *module.getBody()) {
    if (op.getName().getStringRef() != "sdy.mesh")
      continue;
    auto symbol = op.getAttrOfType<StringAttr>(SymbolTable::getSymbolAttrName());
    if (Attribute mesh = op.getAttr("mesh"); symbol && mesh && symbol.getValue() == name)
      return parseMesh(textOf(mesh));
  }
  return std::nullopt;
}

/// Groups of the devices that differ in their coordinates along `axes` alone.
static std::optional<Groups> groupsAlong(const Mesh &mesh, ArrayRef<int64_t> axes) {
  Groups groups;
  DenseMap<int64_t, size_t> rows; // by the coordinates along the other axes
  int64_t width = 1;
  for (int64_t axis : axes)
    width *= mesh.sizes[axis];
  for (int64_t position = 0; position < static_cast<int64_t>(mesh.devices.size()); ++position) {
    int64_t row = 0, place = 0;
    for (int64_t axis : axes)
      place = place * mesh.sizes[axis] + mesh.coordinate(position, axis);
    for (int64_t axis = 0; axis < static_cast<int64_t>(mesh.sizes.size()); ++axis)
      if (!llvm::is_contained(axes, axis))
        row = row * mesh.sizes[axis] + mesh.coordinate(position, axis);
    auto [it, isNew] = rows.try_emplace(row, groups.size());
    if (isNew)
      groups.emplace_back(width, -1);
    groups[it->second][place] = mesh.devices[position];
  }
  return groups;
}

std::optional<Groups> deviceGroups(Operation *collective, ModuleOp module) {
  auto replicas = module->getAttrOfType<IntegerAttr>("mhlo.num_replicas");
  if ((replicas && replicas.getInt() != 1) || !collective->getAttr("use_global_device_ids"))
    return std::nullopt;
  if (FailureOr<Groups> table = stablehlo::getReplicaGroups(collective); succeeded(table)) {
    auto isOdd = [&](const SmallVector<int64_t> &group) {
      return group.size() != table->front().size() ||
             llvm::any_of(group, [](int64_t device) { return device >= kMostDevices; });
    };
    if (table->empty() || table->front().empty() || llvm::any_of(*table, isOdd))
      return std::nullopt;
    return *table;
  }
  auto along =
      dyn_cast_or_null<stablehlo::ReplicaGroupMeshAxesAttr>(collective->getAttr("replica_groups"));
  auto symbol = along ? dyn_cast<FlatSymbolRefAttr>(along.getMesh()) : FlatSymbolRefAttr();
  std::optional<Mesh> mesh = symbol ? findMesh(module, symbol.getValue()) : std::nullopt;
  if (!mesh)
    return std::nullopt;
  SmallVector<int64_t> axes;
  for (Attribute attribute : along.getAxes()) {
    auto axis = dyn_cast<stablehlo::AxisRefAttr>(attribute);
    if (!axis || axis.getSubSize() || mesh->axis(axis.getName().getValue()) < 0)
      return std::nullopt;
    axes.push_back(mesh->axis(axis.getName().getValue()));
  }
  return groupsAlong(*mesh, axes);
}

/// The meshes that an attribute of Shardy's names with `@`.
static SmallVector<std::string> meshNames(StringRef text) {
  SmallVector<std::string> found;
  while (true) {
    size_t at = text.find('@');
    if (at == StringRef::npos)
      return found;
    text = text.drop_front(at + 1);
    auto isPart = [](char c) { return llvm::isAlnum(c) || c == '_' || c == '$' || c == '.'; };
    found.push_back(text.take_while(isPart).str());
  }
}

Operation *enclosingManual(Operation *op, ModuleOp module) {
  Operation *manual = nullptr;
  for (Operation *parent = op->getParentOp(); parent; parent = parent->getParentOp())
    if (isManualComputation(parent)) {
      if (manual)
        return nullptr;
      manual = parent;
    }
  Attribute shardings = manual ? manual->getAttr("in_shardings") : Attribute();
  Attribute axes = manual ? manual->getAttr("manual_axes") : Attribute();
  if (!shardings || !axes || manual->getNumRegions() != 1 || !manual->getRegion(0).hasOneBlock())
    return nullptr;
  SmallVector<std::string> named = quoted(textOf(axes));
  for (const std::string &name : meshNames(textOf(shardings))) {
    std::optional<Mesh> mesh = findMesh(module, name);
    if (!mesh || llvm::any_of(llvm::zip_equal(mesh->names, mesh->sizes), [&](auto axis) {
          return std::get<1>(axis) > 1 && !llvm::is_contained(named, std::get<0>(axis));
        }))
      return nullptr;
  }
  return manual;
}

//===-- Agreement
//-----------------------------------------------------------------------------------------===//

Agreement::Agreement(Operation *manual, const Groups &groups, ModuleOp module)
    : groups(groups), module(module) {
  markArguments(manual);
  bool changed = true;
  while (changed) {
    changed = false;
    manual->getRegion(0).walk<WalkOrder::PreOrder>([&](Operation *op) { changed |= visit(op); });
  }
}

/// Arguments that their sharding splits over devices of one group. An entry that is not understood splits.
void Agreement::markArguments(Operation *manual) {
  Block &body = manual->getRegion(0).front();
  std::string text = textOf(manual->getAttr("in_shardings"));
  // `[<@mesh, [{"x"}, {}]>, <@mesh, [{}]>]`: entries are what is between the outermost pair of angle brackets.
  SmallVector<std::string> entries;
  int depth = 0;
  for (char c : StringRef(text).split('[').second) {
    depth += c == '<';
    if (depth > 0 && c == '<' && depth == 1)
      entries.emplace_back();
    if (depth > 0)
      entries.back().push_back(c);
    depth -= c == '>' && depth > 0;
  }
  for (BlockArgument argument : body.getArguments()) {
    if (entries.size() != body.getNumArguments()) {
      mark(argument);
      continue;
    }
    StringRef entry = entries[argument.getArgNumber()];
    SmallVector<std::string> names = meshNames(entry);
    std::optional<Mesh> mesh = names.size() == 1 ? findMesh(module, names[0]) : std::nullopt;
    SmallVector<int64_t> axes;
    if (mesh)
      for (const std::string &name : quoted(entry))
        axes.push_back(mesh->axis(name));
    if (!mesh || llvm::is_contained(axes, -1) || entry.contains("unreduced")) {
      mark(argument);
      continue;
    }
    DenseMap<int64_t, int64_t> positions;
    for (auto [position, device] : llvm::enumerate(mesh->devices))
      positions[device] = static_cast<int64_t>(position);
    for (const SmallVector<int64_t> &group : groups)
      for (int64_t device : group)
        for (int64_t axis : axes)
          if (!positions.contains(device) || mesh->coordinate(positions.lookup(device), axis) !=
                                                 mesh->coordinate(positions.lookup(group.front()), axis))
            mark(argument);
  }
}

bool Agreement::covers(Operation *collective) const {
  std::optional<Groups> wider = deviceGroups(collective, module);
  return wider && llvm::all_of(groups, [&](const SmallVector<int64_t> &group) {
           return llvm::any_of(*wider, [&](const SmallVector<int64_t> &all) {
             return llvm::all_of(group, [&](int64_t device) { return llvm::is_contained(all, device); });
           });
         });
}

bool Agreement::varies(Operation *op) const {
  if (isa<stablehlo::AllReduceOp, stablehlo::AllGatherOp>(op))
    return !covers(op);
  if (isa<stablehlo::PartitionIdOp, stablehlo::ReplicaIdOp>(op) || isManualComputation(op) || !isClonable(op))
    return true;
  bool found = llvm::any_of(op->getOperands(), [&](Value v) { return varying.contains(v); });
  for (Region &region : op->getRegions())
    region.walk([&](Operation *inner) {
      found |= isa<stablehlo::PartitionIdOp, stablehlo::ReplicaIdOp>(inner) ||
               llvm::any_of(inner->getOperands(), [&](Value v) { return varying.contains(v); });
    });
  return found;
}

bool Agreement::visit(Operation *op) {
  bool changed = false;
  if (auto loop = dyn_cast<stablehlo::WhileOp>(op)) {
    Block &condition = loop.getCond().front(), &body = loop.getBody().front();
    // Devices that disagree on when to stop have different results.
    bool ends = !varying.contains(condition.getTerminator()->getOperand(0));
    for (unsigned k = 0; k < op->getNumResults(); ++k) {
      if (ends && !varying.contains(op->getOperand(k)) &&
          !varying.contains(body.getTerminator()->getOperand(k)))
        continue;
      for (Value value :
           {Value(op->getResult(k)), Value(body.getArgument(k)), Value(condition.getArgument(k))})
        changed |= mark(value);
    }
    return changed;
  }
  if (isa<stablehlo::OptimizationBarrierOp>(op)) {
    for (auto [operand, result] : llvm::zip_equal(op->getOperands(), op->getResults()))
      if (varying.contains(operand))
        changed |= mark(result);
    return changed;
  }
  if (llvm::all_of(op->getResults(), [&](Value v) { return varying.contains(v); }) || !varies(op))
    return false;
  for (Value result : op->getResults())
    changed |= mark(result);
  return changed;
}

} // namespace farrier::collectives
