# Finds MLIR 22 and makes its static archives linkable.
#
# The extension must carry its own MLIR (jaxlib hides every MLIR symbol), and it must be linked
# statically: against a shared libMLIR built by another compiler, the TypeIDs of traits differ and
# modules with regions fail to verify.

set(FARRIER_MLIR_MAJOR 22)
set(FARRIER_MLIR_PREFIX "$ENV{FARRIER_MLIR_PREFIX}" CACHE PATH "Prefix of an MLIR ${FARRIER_MLIR_MAJOR} installation (default: search)")

# find_package(MLIR 22) is rejected by MLIR's version file, so the major is checked by hand.
find_package(MLIR CONFIG QUIET HINTS
  "${FARRIER_MLIR_PREFIX}/lib/cmake/mlir"
  "/usr/lib/llvm-${FARRIER_MLIR_MAJOR}/lib/cmake/mlir"
  "/opt/homebrew/opt/llvm@${FARRIER_MLIR_MAJOR}/lib/cmake/mlir"
  "/usr/local/opt/llvm@${FARRIER_MLIR_MAJOR}/lib/cmake/mlir")
if(NOT MLIR_FOUND OR NOT LLVM_VERSION_MAJOR EQUAL FARRIER_MLIR_MAJOR)
  message(FATAL_ERROR
    "MLIR ${FARRIER_MLIR_MAJOR} was not found (found: '${LLVM_PACKAGE_VERSION}').\n"
    "On Debian or Ubuntu run third_party/install-mlir.sh; elsewhere install LLVM ${FARRIER_MLIR_MAJOR} with MLIR "
    "and pass -DFARRIER_MLIR_PREFIX=<prefix>. See third_party/README.md.")
endif()
message(STATUS "MLIR ${LLVM_PACKAGE_VERSION} at ${MLIR_DIR}")

list(APPEND CMAKE_MODULE_PATH "${MLIR_CMAKE_DIR}" "${LLVM_CMAKE_DIR}")
include(TableGen)
include(AddLLVM)
include(AddMLIR)

# Distributions build MLIR with LLVM_LINK_LLVM_DYLIB: every exported archive then names the shared
# LLVM. Point them at the static Support archive instead, and drop z3 and zstd, which nothing here uses.
foreach(target ${MLIR_EXPORTED_TARGETS})
  if(TARGET ${target})
    get_target_property(libs ${target} INTERFACE_LINK_LIBRARIES)
    if(libs)
      list(TRANSFORM libs REPLACE "^LLVM$" "LLVMSupport")
      set_target_properties(${target} PROPERTIES INTERFACE_LINK_LIBRARIES "${libs}")
    endif()
  endif()
endforeach()
if(TARGET MLIRRemarkStreamer)
  set_property(TARGET MLIRRemarkStreamer APPEND PROPERTY INTERFACE_LINK_LIBRARIES LLVMRemarks)
endif()
set_target_properties(LLVMSupport PROPERTIES INTERFACE_LINK_LIBRARIES "LLVMDemangle;$<$<PLATFORM_ID:Linux>:rt;dl;m>")

# Headers of LLVM and MLIR are system headers: their warnings are not ours.
include_directories(SYSTEM ${LLVM_INCLUDE_DIRS} ${MLIR_INCLUDE_DIRS})
