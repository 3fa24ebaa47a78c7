// Malformed operations are refused with a reason: nothing later indexes with what was not checked.
// RUN: farrier-opt %s --split-input-file --verify-diagnostics

func.func @transpose_rank(%a: tensor<2x3xf32>) {
  // expected-error @below {{permutation has 1 entries, expected 2}}
  %0 = "stablehlo.transpose"(%a) <{permutation = array<i64: 0>}> : (tensor<2x3xf32>) -> tensor<2x3xf32>
  return
}

// -----

func.func @transpose_twice(%a: tensor<2x3xf32>) {
  // expected-error @below {{permutation has 0 twice}}
  %0 = "stablehlo.transpose"(%a) <{permutation = array<i64: 0, 0>}> : (tensor<2x3xf32>) -> tensor<2x2xf32>
  return
}

// -----

func.func @broadcast_range(%a: tensor<2xf32>) {
  // expected-error @below {{broadcast_dimensions has -1, outside [0, 2)}}
  %0 = "stablehlo.broadcast_in_dim"(%a) <{broadcast_dimensions = array<i64: -1>}> : (tensor<2xf32>) -> tensor<2x3xf32>
  return
}

// -----

func.func @reshape_count(%a: tensor<2x3xf32>) {
  // expected-error @below {{6 elements reshaped to 7}}
  %0 = "stablehlo.reshape"(%a) : (tensor<2x3xf32>) -> tensor<7xf32>
  return
}

// -----

func.func @slice_beyond(%a: tensor<4xf32>) {
  // expected-error @below {{[2:9:1] is no slice of dimension 0}}
  %0 = "stablehlo.slice"(%a) <{start_indices = array<i64: 2>, limit_indices = array<i64: 9>, strides = array<i64: 1>}> : (tensor<4xf32>) -> tensor<7xf32>
  return
}

// -----

func.func @slice_stride(%a: tensor<4xf32>) {
  // expected-error @below {{[0:4:0] is no slice of dimension 0}}
  %0 = "stablehlo.slice"(%a) <{start_indices = array<i64: 0>, limit_indices = array<i64: 4>, strides = array<i64: 0>}> : (tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

func.func @concatenate_dimension(%a: tensor<4xf32>) {
  // expected-error @below {{dimension has 3, outside [0, 1)}}
  %0 = "stablehlo.concatenate"(%a, %a) <{dimension = 3 : i64}> : (tensor<4xf32>, tensor<4xf32>) -> tensor<8xf32>
  return
}

// -----

func.func @concatenate_negative(%a: tensor<4xf32>) {
  // expected-error @below {{dimension has -1, outside [0, 1)}}
  %0 = "stablehlo.concatenate"(%a, %a) <{dimension = -1 : i64}> : (tensor<4xf32>, tensor<4xf32>) -> tensor<8xf32>
  return
}

// -----

func.func @pad_count(%a: tensor<4xf32>, %f: tensor<f32>) {
  // expected-error @below {{padding has 0 entries, expected 1}}
  %0 = "stablehlo.pad"(%a, %f) <{edge_padding_low = array<i64>, edge_padding_high = array<i64: 0>, interior_padding = array<i64: 0>}> : (tensor<4xf32>, tensor<f32>) -> tensor<4xf32>
  return
}

// -----

func.func @iota_dimension() {
  // expected-error @below {{iota_dimension has 2, outside [0, 1)}}
  %0 = "stablehlo.iota"() <{iota_dimension = 2 : i64}> : () -> tensor<4xi32>
  return
}

// -----

func.func @dynamic_slice_size(%a: tensor<4xf32>, %i: tensor<i32>) {
  // expected-error @below {{slice_sizes has 5 for dimension 0}}
  %0 = "stablehlo.dynamic_slice"(%a, %i) <{slice_sizes = array<i64: 5>}> : (tensor<4xf32>, tensor<i32>) -> tensor<5xf32>
  return
}

// -----

func.func @update_size(%a: tensor<4xf32>, %b: tensor<5xf32>, %i: tensor<i32>) {
  // expected-error @below {{the update is larger than the operand in dimension 0}}
  %0 = "stablehlo.dynamic_update_slice"(%a, %b, %i) : (tensor<4xf32>, tensor<5xf32>, tensor<i32>) -> tensor<4xf32>
  return
}

// -----

func.func @dot_range(%a: tensor<2x3xf32>) {
  // expected-error @below {{the dimension numbers of lhs has 7, outside [0, 2)}}
  %0 = "stablehlo.dot_general"(%a, %a) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [7], rhs_contracting_dimensions = [1]>}> : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x2xf32>
  return
}

// -----

func.func @dot_sizes(%a: tensor<2x3xf32>) {
  // expected-error @below {{a batching or contracting size of rhs is 2, expected 3}}
  %0 = "stablehlo.dot_general"(%a, %a) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}> : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xf32>
  return
}

// -----

func.func @dot_lengths(%a: tensor<2x3xf32>) {
  // expected-error @below {{rhs_contracting_dimensions has 0 entries, expected 1}}
  %0 = "stablehlo.dot_general"(%a, %a) <{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1]>}> : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xf32>
  return
}

// -----

func.func @dot_kind(%a: tensor<2x3xf32>) {
  // expected-error @below {{Invalid attribute `dot_dimension_numbers` in property conversion: 3 : i64}}
  %0 = "stablehlo.dot_general"(%a, %a) <{dot_dimension_numbers = 3 : i64}> : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xf32>
  return
}

// -----

func.func @gather_map(%a: tensor<4x4xf32>, %i: tensor<3x1xi32>) {
  // expected-error @below {{start_index_map has 9, outside [0, 2)}}
  %0 = "stablehlo.gather"(%a, %i) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [9], index_vector_dim = 1>, slice_sizes = array<i64: 1, 4>}> : (tensor<4x4xf32>, tensor<3x1xi32>) -> tensor<3x4xf32>
  return
}

// -----

func.func @reduce_dimension(%a: tensor<4xf32>, %f: tensor<f32>) {
  // expected-error @below {{dimensions has 4, outside [0, 1)}}
  %0 = "stablehlo.reduce"(%a, %f) <{dimensions = array<i64: 4>}> ({ ^bb0(%x: tensor<f32>, %y: tensor<f32>): "stablehlo.return"(%x) : (tensor<f32>) -> () }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
  return
}

// -----

func.func @reduce_arguments(%a: tensor<4xf32>, %f: tensor<f32>) {
  // expected-error @below {{the region's arguments has 1 entries, expected 2}}
  %0 = "stablehlo.reduce"(%a, %f) <{dimensions = array<i64: 0>}> ({ ^bb0(%x: tensor<f32>): "stablehlo.return"(%x) : (tensor<f32>) -> () }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
  return
}

// -----

func.func @reduce_empty(%a: tensor<4xf32>, %f: tensor<f32>) {
  // expected-error @below {{region #0 ('body') failed to verify constraint: region with 1 blocks}}
  %0 = "stablehlo.reduce"(%a, %f) <{dimensions = array<i64: 0>}> ({ }) : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
  return
}

// -----

func.func @sort_dimension(%a: tensor<4xf32>) {
  // expected-error @below {{dimension 2 of rank 1}}
  %0 = "stablehlo.sort"(%a) <{dimension = 2 : i64}> ({ ^bb0(%x: tensor<f32>, %y: tensor<f32>): %c = "stablehlo.compare"(%x, %y) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<f32>, tensor<f32>) -> tensor<i1> "stablehlo.return"(%c) : (tensor<i1>) -> () }) : (tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

func.func @while_arity(%a: tensor<4xf32>) {
  // expected-error @below {{operands, results and region arguments differ in number: 1, 1, 0}}
  %0 = "stablehlo.while"(%a) ({ ^bb0: %c = "stablehlo.constant"() <{value = dense<true> : tensor<i1>}> : () -> tensor<i1> "stablehlo.return"(%c) : (tensor<i1>) -> () }, { ^bb0(%x: tensor<4xf32>): "stablehlo.return"(%x) : (tensor<4xf32>) -> () }) : (tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

func.func @while_returns(%a: tensor<4xf32>) {
  // expected-error @below {{`body` returns 2 values, expected 1}}
  %0 = "stablehlo.while"(%a) ({ ^bb0(%x: tensor<4xf32>): %c = "stablehlo.constant"() <{value = dense<true> : tensor<i1>}> : () -> tensor<i1> "stablehlo.return"(%c) : (tensor<i1>) -> () }, { ^bb0(%x: tensor<4xf32>): "stablehlo.return"(%x, %x) : (tensor<4xf32>, tensor<4xf32>) -> () }) : (tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

func.func @case_empty(%i: tensor<i32>) {
  // expected-error @below {{has no branches}}
  %0 = "stablehlo.case"(%i) : (tensor<i32>) -> tensor<4xf32>
  return
}

// -----

func.func @groups_twice(%a: tensor<4xf32>) {
  // expected-error @below {{replica_groups has 0 twice}}
  %0 = "stablehlo.all_gather"(%a) <{all_gather_dim = 0 : i64, replica_groups = dense<[[0, 0]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  return
}

// -----

func.func @groups_rank(%a: tensor<4xf32>) {
  // expected-error @below {{expected a 2-D table}}
  %0 = "stablehlo.all_gather"(%a) <{all_gather_dim = 0 : i64, replica_groups = dense<[0, 1]> : tensor<2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  return
}

// -----

func.func @gather_dimension(%a: tensor<4xf32>) {
  // expected-error @below {{all_gather_dim has 1, outside [0, 1)}}
  %0 = "stablehlo.all_gather"(%a) <{all_gather_dim = 1 : i64, replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> : (tensor<4xf32>) -> tensor<8xf32>
  return
}

// -----

func.func @barrier_types(%a: tensor<4xf32>) {
  // expected-error @below {{operand and result types differ}}
  %0 = "stablehlo.optimization_barrier"(%a) : (tensor<4xf32>) -> tensor<5xf32>
  return
}

// -----

func.func @alias_operand(%a: tensor<4xf32>) {
  // expected-error @below {{output_operand_aliases names operand 4 of 1}}
  %0 = "stablehlo.custom_call"(%a) <{call_target_name = "f", output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [], operand_index = 4, operand_tuple_indices = []>]}> : (tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

func.func @constant_shape() {
  // expected-error @below {{the value's shape differs from the type's}}
  %0 = "stablehlo.constant"() <{value = dense<1.0> : tensor<3xf32>}> : () -> tensor<4xf32>
  return
}

// -----

func.func @elementwise_shape(%a: tensor<4xf32>) {
  // expected-error @below {{all non-scalar operands/results must have the same shape and base type}}
  %0 = "stablehlo.sine"(%a) : (tensor<4xf32>) -> tensor<5xf32>
  return
}

// -----

func.func @pad_overflow(%a: tensor<4xf32>, %v: tensor<f32>) {
  // expected-error @below {{the padded dimension 0 has no size in 64 bits}}
  %0 = "stablehlo.pad"(%a, %v) <{edge_padding_high = array<i64: 0>, edge_padding_low = array<i64: 9223372036854775807>, interior_padding = array<i64: 0>}> : (tensor<4xf32>, tensor<f32>) -> tensor<4xf32>
  return
}

// -----

func.func @while_without_return(%n: tensor<i32>) -> tensor<i32> {
  // expected-error @below {{its regions are one block that ends in stablehlo.return}}
  %0 = "stablehlo.while"(%n) ({
  ^bb0(%i: tensor<i32>):
    %p = "stablehlo.compare"(%i, %n) <{comparison_direction = #stablehlo<comparison_direction LT>}> : (tensor<i32>, tensor<i32>) -> tensor<i1>
    "stablehlo.return"(%p) : (tensor<i1>) -> ()
  }, {
  ^bb0(%i: tensor<i32>):
    "unknown.return"(%i) : (tensor<i32>) -> ()
  }) : (tensor<i32>) -> tensor<i32>
  return %0 : tensor<i32>
}

// -----

func.func @branch_without_return(%p: tensor<i1>, %x: tensor<i32>) -> tensor<i32> {
  // expected-error @below {{its regions are one block that ends in stablehlo.return}}
  %0 = "stablehlo.if"(%p) ({
    "unknown.return"(%x) : (tensor<i32>) -> ()
  }, {
    "stablehlo.return"(%x) : (tensor<i32>) -> ()
  }) : (tensor<i1>) -> tensor<i32>
  return %0 : tensor<i32>
}

// -----

func.func @composite_symbol(%a: tensor<4xf32>) {
  // expected-error @below {{its decomposition @nowhere does not exist}}
  %0 = "stablehlo.composite"(%a) <{decomposition = @nowhere, name = "n"}> : (tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

func.func @tuple_index(%a: tuple<tensor<4xf32>>) {
  // expected-error @below {{index 2 of 1 elements}}
  %0 = "stablehlo.get_tuple_element"(%a) <{index = 2 : i32}> : (tuple<tensor<4xf32>>) -> tensor<4xf32>
  return
}

// -----

func.func @convolution_rank(%a: tensor<1x4x4x1xf32>, %w: tensor<2x2x1x1xf32>) {
  // expected-error @below {{the input's dimension numbers has 3 entries, expected 4}}
  %0 = "stablehlo.convolution"(%a, %w) <{batch_group_count = 1 : i64, dimension_numbers = #stablehlo.conv<[b, 0, f]x[0, i, o]->[b, 0, f]>, feature_group_count = 1 : i64}> : (tensor<1x4x4x1xf32>, tensor<2x2x1x1xf32>) -> tensor<1x3x3x1xf32>
  return
}
