// RUN: farrier-opt %s --split-input-file --farrier-fusion="rewrites=sink sink-bytes=4096" --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --split-input-file --farrier-fusion="rewrites=sink sink-bytes=4097" --mlir-print-op-generic | FileCheck %s --check-prefix=SMALL

// A broadcast that the loop adds in every iteration is made inside, from the row.
// CHECK-LABEL: sym_name = "broadcast"
// CHECK-NEXT: ^bb0([[X:%.*]]: tensor<32x32xf32>, [[ROW:%.*]]: tensor<32xf32>):
// CHECK-NOT: broadcast_in_dim
// CHECK: "stablehlo.while"({{%.*}}, [[X]], [[ROW]])
// CHECK: "stablehlo.compare"
// CHECK: ^bb0({{%.*}}: tensor<i32>, [[C:%.*]]: tensor<32x32xf32>, [[R:%.*]]: tensor<32xf32>):
// CHECK: [[M:%.*]] = "stablehlo.broadcast_in_dim"([[R]])
// CHECK: "stablehlo.add"([[C]], [[M]])
// SMALL-LABEL: sym_name = "broadcast"
// SMALL: "stablehlo.broadcast_in_dim"
// SMALL: "stablehlo.while"
"func.func"() <{function_type = (tensor<32x32xf32>, tensor<32xf32>) -> tensor<32x32xf32>, sym_name = "broadcast"}> ({
^bb0(%x: tensor<32x32xf32>, %row: tensor<32xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
  %eight = "stablehlo.constant"() <{value = dense<8> : tensor<i32>}> : () -> tensor<i32>
  %m = "stablehlo.broadcast_in_dim"(%row) <{broadcast_dimensions = array<i64: 1>}> : (tensor<32xf32>) -> tensor<32x32xf32>
  %r:3 = "stablehlo.while"(%zero, %x, %m) ({
  ^bb0(%i: tensor<i32>, %c: tensor<32x32xf32>, %mask: tensor<32x32xf32>):
    %p = "stablehlo.compare"(%i, %eight) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %c: tensor<32x32xf32>, %mask: tensor<32x32xf32>):
    %j = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %d = "stablehlo.add"(%c, %mask) : (tensor<32x32xf32>, tensor<32x32xf32>) -> tensor<32x32xf32>
    "stablehlo.return"(%j, %d, %mask) : (tensor<i32>, tensor<32x32xf32>, tensor<32x32xf32>) -> ()
  }) : (tensor<i32>, tensor<32x32xf32>, tensor<32x32xf32>) -> (tensor<i32>, tensor<32x32xf32>, tensor<32x32xf32>)
  "func.return"(%r#1) : (tensor<32x32xf32>) -> ()
}) : () -> ()

// -----

// A product wants it stored: made inside it would be written in every iteration.
// CHECK-LABEL: sym_name = "product"
// CHECK: "stablehlo.broadcast_in_dim"
// CHECK: "stablehlo.while"
// CHECK-NOT: "stablehlo.broadcast_in_dim"
"func.func"() <{function_type = (tensor<32x32xf32>, tensor<32xf32>) -> tensor<32x32xf32>, sym_name = "product"}> ({
^bb0(%x: tensor<32x32xf32>, %row: tensor<32xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
  %eight = "stablehlo.constant"() <{value = dense<8> : tensor<i32>}> : () -> tensor<i32>
  %m = "stablehlo.broadcast_in_dim"(%row) <{broadcast_dimensions = array<i64: 1>}> : (tensor<32xf32>) -> tensor<32x32xf32>
  %r:3 = "stablehlo.while"(%zero, %x, %m) ({
  ^bb0(%i: tensor<i32>, %c: tensor<32x32xf32>, %mask: tensor<32x32xf32>):
    %p = "stablehlo.compare"(%i, %eight) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %c: tensor<32x32xf32>, %mask: tensor<32x32xf32>):
    %j = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %t = "stablehlo.transpose"(%mask) <{permutation = array<i64: 1, 0>}> : (tensor<32x32xf32>) -> tensor<32x32xf32>
    %d = "stablehlo.dot_general"(%c, %t) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<32x32xf32>, tensor<32x32xf32>) -> tensor<32x32xf32>
    "stablehlo.return"(%j, %d, %mask) : (tensor<i32>, tensor<32x32xf32>, tensor<32x32xf32>) -> ()
  }) : (tensor<i32>, tensor<32x32xf32>, tensor<32x32xf32>) -> (tensor<i32>, tensor<32x32xf32>, tensor<32x32xf32>)
  "func.return"(%r#1) : (tensor<32x32xf32>) -> ()
}) : () -> ()

// -----

// Each iteration casts the slice that it reads, not all of them before.
// CHECK-LABEL: sym_name = "cast"
// CHECK-NEXT: ^bb0([[X:%.*]]: tensor<32x32xf16>, [[STACK:%.*]]: tensor<8x32x32xf32>):
// CHECK: "stablehlo.while"({{%.*}}, [[X]], [[STACK]])
// CHECK: [[PART:%.*]] = "stablehlo.dynamic_slice"({{.*}}tensor<1x32x32xf32>
// CHECK-NEXT: "stablehlo.convert"([[PART]]) : (tensor<1x32x32xf32>) -> tensor<1x32x32xf16>
"func.func"() <{function_type = (tensor<32x32xf16>, tensor<8x32x32xf32>) -> tensor<32x32xf16>, sym_name = "cast"}> ({
^bb0(%x: tensor<32x32xf16>, %stack: tensor<8x32x32xf32>):
  %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
  %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
  %eight = "stablehlo.constant"() <{value = dense<8> : tensor<i32>}> : () -> tensor<i32>
  %m = "stablehlo.convert"(%stack) : (tensor<8x32x32xf32>) -> tensor<8x32x32xf16>
  %r:3 = "stablehlo.while"(%zero, %x, %m) ({
  ^bb0(%i: tensor<i32>, %c: tensor<32x32xf16>, %w: tensor<8x32x32xf16>):
    %p = "stablehlo.compare"(%i, %eight) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>, %c: tensor<32x32xf16>, %w: tensor<8x32x32xf16>):
    %j = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
    %s = "stablehlo.dynamic_slice"(%w, %i, %zero, %zero) <{slice_sizes = array<i64: 1, 32, 32>}> : (tensor<8x32x32xf16>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x32x32xf16>
    %t = "stablehlo.reshape"(%s) : (tensor<1x32x32xf16>) -> tensor<32x32xf16>
    %d = "stablehlo.dot_general"(%c, %t) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<32x32xf16>, tensor<32x32xf16>) -> tensor<32x32xf16>
    "stablehlo.return"(%j, %d, %w) : (tensor<i32>, tensor<32x32xf16>, tensor<8x32x32xf16>) -> ()
  }) : (tensor<i32>, tensor<32x32xf16>, tensor<8x32x32xf16>) -> (tensor<i32>, tensor<32x32xf16>, tensor<8x32x32xf16>)
  "func.return"(%r#1) : (tensor<32x32xf16>) -> ()
}) : () -> ()
