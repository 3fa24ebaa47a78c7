#include "farrier/Support/Registry.h"

#include <algorithm>

namespace farrier {

static llvm::StringMap<Query> &queries() {
  static llvm::StringMap<Query> map;
  return map;
}

void registerQuery(llvm::StringRef name, Query query) { queries().try_emplace(name, std::move(query)); }

const Query *lookupQuery(llvm::StringRef name) {
  auto it = queries().find(name);
  return it == queries().end() ? nullptr : &it->second;
}

std::vector<std::string> queryNames() {
  std::vector<std::string> names;
  for (const auto &entry : queries())
    names.push_back(entry.getKey().str());
  std::sort(names.begin(), names.end());
  return names;
}

} // namespace farrier
