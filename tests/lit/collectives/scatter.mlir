// RUN: farrier-opt %s --farrier-scatter-reductions="min-bytes=1" --split-input-file --mlir-print-op-generic | FileCheck %s
// RUN: farrier-opt %s --farrier-scatter-reductions --split-input-file --mlir-print-op-generic | FileCheck %s --check-prefix=SMALL

// A product over devices, a residual and a bias that the devices agree on, and a weight that they do not.
// CHECK-LABEL: sym_name = "layer"
// CHECK: ^bb0(%[[X:.*]]: tensor<64x5xf32>, %[[W:.*]]: tensor<5x4xf32>, %[[BIAS:.*]]: tensor<5xf32>):
// CHECK-DAG: %[[TABLE:.*]] = "stablehlo.constant"() <{value = dense<[0, 1]> : tensor<2xi32>}>
// CHECK-DAG: %[[ID:.*]] = "stablehlo.partition_id"()
// CHECK: %[[ROW:.*]] = "stablehlo.dynamic_slice"(%[[TABLE]], %[[ID]])
// CHECK: %[[MINE:.*]] = "stablehlo.multiply"
// CHECK: %[[X0:.*]] = "stablehlo.dynamic_slice"(%[[X]], %[[MINE]], %{{.*}}) <{slice_sizes = array<i64: 32, 5>}>
// CHECK: %[[R:.*]] = "stablehlo.reduce_scatter"(%{{.*}}) <{replica_groups = dense<{{\[\[}}0, 1]]> : tensor<1x2xi64>, scatter_dimension = 0 : i64, use_global_device_ids}>
// CHECK: (tensor<64x5xf32>) -> tensor<32x5xf32>
// CHECK: %[[Y:.*]] = "stablehlo.add"(%[[X0]], %[[R]]) : (tensor<32x5xf32>
// CHECK: %[[Z:.*]] = "stablehlo.add"(%[[Y]], %{{.*}}) : (tensor<32x5xf32>
// CHECK: %[[B:.*]] = "stablehlo.broadcast_in_dim"(%[[BIAS]]) {{.*}} -> tensor<32x5xf32>
// CHECK: %[[S:.*]] = "stablehlo.multiply"(%[[Z]], %[[B]]) : (tensor<32x5xf32>
// CHECK: %[[G:.*]] = "stablehlo.all_gather"(%[[S]]) <{all_gather_dim = 0 : i64, replica_groups
// CHECK-SAME: (tensor<32x5xf32>) -> tensor<64x5xf32>
// The gradient of the bias sums over the rows: a sum of each device's, and one over the devices.
// CHECK: %[[D:.*]] = "stablehlo.reduce"(%[[S]]
// CHECK: "stablehlo.all_reduce"(%[[D]])
// CHECK: "stablehlo.dot_general"(%[[G]], %[[W]])
// SMALL-LABEL: sym_name = "layer"
// SMALL-NOT: reduce_scatter
"builtin.module"() ({
  "sdy.mesh"() <{mesh = #sdy.mesh<["t"=2]>, sym_name = "mesh"}> : () -> ()
  "func.func"() <{function_type = (tensor<64x5xf32>, tensor<5x8xf32>, tensor<5xf32>) -> (tensor<64x8xf32>, tensor<5xf32>), sym_name = "layer"}> ({
  ^bb0(%a: tensor<64x5xf32>, %b: tensor<5x8xf32>, %c: tensor<5xf32>):
    %o:2 = "sdy.manual_computation"(%a, %b, %c) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{}, {}]>, <@mesh, [{}, {"t"}]>, <@mesh, [{}]>]>, manual_axes = #sdy<manual_axes{"t"}>, out_shardings = #sdy.sharding_per_value<[<@mesh, [{}, {"t"}]>, <@mesh, [{}]>]>}> ({
    ^bb0(%x: tensor<64x5xf32>, %w: tensor<5x4xf32>, %bias: tensor<5xf32>):
      %h = "stablehlo.dot_general"(%x, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x5xf32>, tensor<5x4xf32>) -> tensor<64x4xf32>
      %p = "stablehlo.dot_general"(%h, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<64x4xf32>, tensor<5x4xf32>) -> tensor<64x5xf32>
      %r = "stablehlo.all_reduce"(%p) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<64x5xf32>) -> tensor<64x5xf32>
      %q = "stablehlo.dot_general"(%h, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1]>}> : (tensor<64x4xf32>, tensor<5x4xf32>) -> tensor<64x5xf32>
      %u = "stablehlo.all_reduce"(%q) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<64x5xf32>) -> tensor<64x5xf32>
      %y = "stablehlo.add"(%x, %r) : (tensor<64x5xf32>, tensor<64x5xf32>) -> tensor<64x5xf32>
      %z = "stablehlo.add"(%y, %u) : (tensor<64x5xf32>, tensor<64x5xf32>) -> tensor<64x5xf32>
      %k = "stablehlo.broadcast_in_dim"(%bias) <{broadcast_dimensions = array<i64: 1>}> : (tensor<5xf32>) -> tensor<64x5xf32>
      %n = "stablehlo.multiply"(%z, %k) : (tensor<64x5xf32>, tensor<64x5xf32>) -> tensor<64x5xf32>
      %zero = "stablehlo.constant"() <{value = dense<0.0> : tensor<f32>}> : () -> tensor<f32>
      %d = "stablehlo.reduce"(%n, %zero) <{dimensions = array<i64: 0>}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<64x5xf32>, tensor<f32>) -> tensor<5xf32>
      %e = "stablehlo.dot_general"(%n, %w) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<64x5xf32>, tensor<5x4xf32>) -> tensor<64x4xf32>
      "sdy.return"(%e, %d) : (tensor<64x4xf32>, tensor<5xf32>) -> ()
    }) : (tensor<64x5xf32>, tensor<5x8xf32>, tensor<5xf32>) -> (tensor<64x8xf32>, tensor<5xf32>)
    "func.return"(%o#0, %o#1) : (tensor<64x8xf32>, tensor<5xf32>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} : () -> ()

// -----

// The scale differs from device to device, so what is made with it is no part of a value that they share.
// CHECK-LABEL: sym_name = "disagree"
// CHECK: "stablehlo.all_reduce"
// CHECK-NOT: reduce_scatter
// SMALL-LABEL: sym_name = "disagree"
"builtin.module"() ({
  "sdy.mesh"() <{mesh = #sdy.mesh<["t"=2]>, sym_name = "mesh"}> : () -> ()
  "func.func"() <{function_type = (tensor<8x16xf32>, tensor<32xf32>) -> tensor<8x32xf32>, sym_name = "disagree"}> ({
  ^bb0(%a: tensor<8x16xf32>, %b: tensor<32xf32>):
    %o = "sdy.manual_computation"(%a, %b) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{}, {}]>, <@mesh, [{"t"}]>]>, manual_axes = #sdy<manual_axes{"t"}>, out_shardings = #sdy.sharding_per_value<[<@mesh, [{}, {"t"}]>]>}> ({
    ^bb0(%x: tensor<8x16xf32>, %scale: tensor<16xf32>):
      %r = "stablehlo.all_reduce"(%x) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<8x16xf32>) -> tensor<8x16xf32>
      %k = "stablehlo.broadcast_in_dim"(%scale) <{broadcast_dimensions = array<i64: 1>}> : (tensor<16xf32>) -> tensor<8x16xf32>
      %n = "stablehlo.multiply"(%r, %k) : (tensor<8x16xf32>, tensor<8x16xf32>) -> tensor<8x16xf32>
      "sdy.return"(%n) : (tensor<8x16xf32>) -> ()
    }) : (tensor<8x16xf32>, tensor<32xf32>) -> tensor<8x32xf32>
    "func.return"(%o) : (tensor<8x32xf32>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} : () -> ()

// -----

// Each device reads its own rows, times a number: a scatter, and no gather.
// CHECK-LABEL: sym_name = "own"
// CHECK: %[[R:.*]] = "stablehlo.reduce_scatter"
// CHECK: %[[H:.*]] = "stablehlo.multiply"(%[[R]], %{{.*}}) : (tensor<4x16xf32>
// CHECK-NOT: all_gather
// CHECK: "sdy.return"(%[[H]])
// SMALL-LABEL: sym_name = "own"
"builtin.module"() ({
  "sdy.mesh"() <{mesh = #sdy.mesh<["t"=2]>, sym_name = "mesh"}> : () -> ()
  "func.func"() <{function_type = (tensor<16x16xf32>) -> tensor<8x16xf32>, sym_name = "own"}> ({
  ^bb0(%a: tensor<16x16xf32>):
    %o = "sdy.manual_computation"(%a) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{"t"}, {}]>]>, manual_axes = #sdy<manual_axes{"t"}>, out_shardings = #sdy.sharding_per_value<[<@mesh, [{"t"}, {}]>]>}> ({
    ^bb0(%x: tensor<8x16xf32>):
      %r = "stablehlo.all_reduce"(%x) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<8x16xf32>) -> tensor<8x16xf32>
      %half = "stablehlo.constant"() <{value = dense<0.5> : tensor<8x16xf32>}> : () -> tensor<8x16xf32>
      %h = "stablehlo.multiply"(%r, %half) : (tensor<8x16xf32>, tensor<8x16xf32>) -> tensor<8x16xf32>
      %id = "stablehlo.partition_id"() : () -> tensor<ui32>
      %i = "stablehlo.convert"(%id) : (tensor<ui32>) -> tensor<i32>
      %four = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
      %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
      %start = "stablehlo.multiply"(%i, %four) : (tensor<i32>, tensor<i32>) -> tensor<i32>
      %mine = "stablehlo.dynamic_slice"(%h, %start, %zero) <{slice_sizes = array<i64: 4, 16>}> : (tensor<8x16xf32>, tensor<i32>, tensor<i32>) -> tensor<4x16xf32>
      "sdy.return"(%mine) : (tensor<4x16xf32>) -> ()
    }) : (tensor<16x16xf32>) -> tensor<8x16xf32>
    "func.return"(%o) : (tensor<8x16xf32>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} : () -> ()

// -----

// Nothing but its own rows is read.
// CHECK-LABEL: sym_name = "slice"
// CHECK: %[[R:.*]] = "stablehlo.reduce_scatter"
// CHECK-NOT: all_gather
// CHECK: "sdy.return"(%[[R]])
// SMALL-LABEL: sym_name = "slice"
"builtin.module"() ({
  "sdy.mesh"() <{mesh = #sdy.mesh<["t"=2]>, sym_name = "mesh"}> : () -> ()
  "func.func"() <{function_type = (tensor<16x16xf32>) -> tensor<8x16xf32>, sym_name = "slice"}> ({
  ^bb0(%a: tensor<16x16xf32>):
    %o = "sdy.manual_computation"(%a) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{"t"}, {}]>]>, manual_axes = #sdy<manual_axes{"t"}>, out_shardings = #sdy.sharding_per_value<[<@mesh, [{"t"}, {}]>]>}> ({
    ^bb0(%x: tensor<8x16xf32>):
      %r = "stablehlo.all_reduce"(%x) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<8x16xf32>) -> tensor<8x16xf32>
      %id = "stablehlo.partition_id"() : () -> tensor<ui32>
      %i = "stablehlo.convert"(%id) : (tensor<ui32>) -> tensor<i32>
      %four = "stablehlo.constant"() <{value = dense<4> : tensor<i32>}> : () -> tensor<i32>
      %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
      %start = "stablehlo.multiply"(%i, %four) : (tensor<i32>, tensor<i32>) -> tensor<i32>
      %mine = "stablehlo.dynamic_slice"(%r, %start, %zero) <{slice_sizes = array<i64: 4, 16>}> : (tensor<8x16xf32>, tensor<i32>, tensor<i32>) -> tensor<4x16xf32>
      "sdy.return"(%mine) : (tensor<4x16xf32>) -> ()
    }) : (tensor<16x16xf32>) -> tensor<8x16xf32>
    "func.return"(%o) : (tensor<8x16xf32>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} : () -> ()

// -----

// How often the loop runs differs from device to device: no collective may stand in it. What it reads whole is
// gathered before.
// CHECK-LABEL: sym_name = "uneven"
// CHECK: "stablehlo.reduce_scatter"
// CHECK: "stablehlo.tanh"{{.*}} : (tensor<4x16xf32>
// CHECK: "stablehlo.all_gather"
// CHECK: "stablehlo.while"
// CHECK-NOT: all_gather
// CHECK: "stablehlo.add"({{.*}}) : (tensor<8x16xf32>
// SMALL-LABEL: sym_name = "uneven"
"builtin.module"() ({
  "sdy.mesh"() <{mesh = #sdy.mesh<["t"=2]>, sym_name = "mesh"}> : () -> ()
  "func.func"() <{function_type = (tensor<16x16xf32>) -> tensor<16x16xf32>, sym_name = "uneven"}> ({
  ^bb0(%a: tensor<16x16xf32>):
    %o = "sdy.manual_computation"(%a) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{"t"}, {}]>]>, manual_axes = #sdy<manual_axes{"t"}>, out_shardings = #sdy.sharding_per_value<[<@mesh, [{"t"}, {}]>]>}> ({
    ^bb0(%x: tensor<8x16xf32>):
      %r = "stablehlo.all_reduce"(%x) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>, use_global_device_ids}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<8x16xf32>) -> tensor<8x16xf32>
      %t = "stablehlo.tanh"(%r) : (tensor<8x16xf32>) -> tensor<8x16xf32>
      %id = "stablehlo.partition_id"() : () -> tensor<ui32>
      %n = "stablehlo.convert"(%id) : (tensor<ui32>) -> tensor<i32>
      %zero = "stablehlo.constant"() <{value = dense<0> : tensor<i32>}> : () -> tensor<i32>
      %one = "stablehlo.constant"() <{value = dense<1> : tensor<i32>}> : () -> tensor<i32>
      %w:2 = "stablehlo.while"(%zero, %x) ({
      ^bb0(%i: tensor<i32>, %y: tensor<8x16xf32>):
        %less = "stablehlo.compare"(%i, %n) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
        "stablehlo.return"(%less) : (tensor<i1>) -> ()
      }, {
      ^bb0(%i: tensor<i32>, %y: tensor<8x16xf32>):
        %next = "stablehlo.add"(%i, %one) : (tensor<i32>, tensor<i32>) -> tensor<i32>
        %u = "stablehlo.negate"(%t) : (tensor<8x16xf32>) -> tensor<8x16xf32>
        %z = "stablehlo.add"(%y, %u) : (tensor<8x16xf32>, tensor<8x16xf32>) -> tensor<8x16xf32>
        "stablehlo.return"(%next, %z) : (tensor<i32>, tensor<8x16xf32>) -> ()
      }) : (tensor<i32>, tensor<8x16xf32>) -> (tensor<i32>, tensor<8x16xf32>)
      "sdy.return"(%w#1) : (tensor<8x16xf32>) -> ()
    }) : (tensor<16x16xf32>) -> tensor<16x16xf32>
    "func.return"(%o) : (tensor<16x16xf32>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} : () -> ()

// -----

// Groups along an axis of a mesh whose devices are in another order: the second device has the first part.
// CHECK-LABEL: sym_name = "order"
// CHECK: "stablehlo.constant"() <{value = dense<[1, 0]> : tensor<2xi32>}>
// CHECK: "stablehlo.reduce_scatter"{{.*}}replica_groups = #stablehlo.replica_group_mesh_axes<mesh = @mesh, axes = [#stablehlo.axis_ref<name = "t">]>
// CHECK: %[[Y:.*]] = "stablehlo.add"({{.*}}) : (tensor<4x16xf32>
// CHECK: "stablehlo.all_gather"(%[[Y]]) <{all_gather_dim = 0 : i64, replica_groups = #stablehlo.replica_group_mesh_axes
// SMALL-LABEL: sym_name = "order"
"builtin.module"() ({
  "sdy.mesh"() <{mesh = #sdy.mesh<["t"=2], device_ids=[1, 0]>, sym_name = "mesh"}> : () -> ()
  "func.func"() <{function_type = (tensor<8x16xf32>, tensor<16x16xf32>) -> tensor<8x16xf32>, sym_name = "order"}> ({
  ^bb0(%a: tensor<8x16xf32>, %b: tensor<16x16xf32>):
    %o = "sdy.manual_computation"(%a, %b) <{in_shardings = #sdy.sharding_per_value<[<@mesh, [{}, {}]>, <@mesh, [{"t"}, {}]>]>, manual_axes = #sdy<manual_axes{"t"}>, out_shardings = #sdy.sharding_per_value<[<@mesh, [{}, {}]>]>}> ({
    ^bb0(%x: tensor<8x16xf32>, %p: tensor<8x16xf32>):
      %r = "stablehlo.all_reduce"(%p) <{replica_groups = #stablehlo.replica_group_mesh_axes<mesh = @mesh, axes = [#stablehlo.axis_ref<name = "t">]>, use_global_device_ids}> ({
      ^bb0(%l: tensor<f32>, %m: tensor<f32>):
        %s = "stablehlo.add"(%l, %m) : (tensor<f32>, tensor<f32>) -> tensor<f32>
        "stablehlo.return"(%s) : (tensor<f32>) -> ()
      }) : (tensor<8x16xf32>) -> tensor<8x16xf32>
      %y = "stablehlo.add"(%x, %r) : (tensor<8x16xf32>, tensor<8x16xf32>) -> tensor<8x16xf32>
      "sdy.return"(%y) : (tensor<8x16xf32>) -> ()
    }) : (tensor<8x16xf32>, tensor<16x16xf32>) -> tensor<8x16xf32>
    "func.return"(%o) : (tensor<8x16xf32>) -> ()
  }) : () -> ()
}) {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} : () -> ()
