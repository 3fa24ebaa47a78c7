"""Our declaration of StableHLO against jaxlib's."""

import inspect

import pytest
from farrier import _core
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import _stablehlo_ops_gen as generated
from programs import parse


def jaxlib_operations() -> dict[str, set[str]]:
    """Operation name -> attributes, as jaxlib's Python classes declare them."""
    result = {}
    for _, cls in inspect.getmembers(generated, inspect.isclass):
        name = getattr(cls, "OPERATION_NAME", "")
        if not issubclass(cls, ir.OpView) or not name.startswith("stablehlo."):
            continue
        getters = (
            value.fget.__code__ for value in vars(cls).values() if isinstance(value, property) and value.fget
        )
        # The getter of an attribute is `self.operation.attributes["name"]`.
        result[name] = {
            constant
            for code in getters
            if "attributes" in code.co_names
            for constant in code.co_consts
            if isinstance(constant, str)
        }
    return result


def test_jaxlib_has_no_operation_or_attribute_that_we_do_not_declare():
    ours = _core.dialect_operations("stablehlo")
    missing = []
    for name, attributes in jaxlib_operations().items():
        if name not in ours:
            missing.append(name)
            continue
        missing += [f"{name}: {attribute}" for attribute in sorted(attributes - set(ours[name]))]
    assert not missing, f"declare these in cpp/include/farrier/Dialect/StableHLO: {missing}"


def test_the_oracle_sees_operations_and_attributes():
    # A jaxlib that generates its classes another way must not make the test above pass for nothing.
    known = jaxlib_operations()
    assert len(known) >= 118
    assert known["stablehlo.dot_general"] == {"dot_dimension_numbers", "precision_config", "algorithm"}
    assert known["stablehlo.add"] == set()


ATTRIBUTES = [
    "#stablehlo.dot<>",
    "#stablehlo.dot<lhs_batching_dimensions = [0], rhs_batching_dimensions = [0], "
    "lhs_contracting_dimensions = [1, 2], "
    "rhs_contracting_dimensions = [2, 1]>",
    "#stablehlo.gather<offset_dims = [0], collapsed_slice_dims = [1], operand_batching_dims = [2], "
    "start_indices_batching_dims = [0], start_index_map = [0], index_vector_dim = 1>",
    "#stablehlo.gather<index_vector_dim = -1>",
    "#stablehlo.scatter<update_window_dims = [0], inserted_window_dims = [1], input_batching_dims = [2], "
    "scatter_indices_batching_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>",
    "#stablehlo.conv<[b, 1, 0, f]x[0, 1, i, o]->[b, 0, 1, f]>",
    "#stablehlo.conv<[b, f]x[i, o]->[b, f]>",
    "#stablehlo.output_operand_alias<output_tuple_indices = [0], operand_index = 0, "
    "operand_tuple_indices = [1, 2]>",
    "#stablehlo.channel_handle<handle = 1, type = 0>",
    "#stablehlo.dot_algorithm<lhs_precision_type = tf32, rhs_precision_type = tf32, accumulation_type = f32, "
    "lhs_component_count = 1, rhs_component_count = 1, num_primitive_operations = 1, "
    "allow_imprecise_accumulation = false>",
    "#stablehlo.result_accuracy<mode = #stablehlo.result_accuracy_mode<DEFAULT>>",
    "#stablehlo.result_accuracy<atol = 1.0e-05, ulps = 1, mode = #stablehlo.result_accuracy_mode<TOLERANCE>>",
    "#stablehlo.result_accuracy<atol = 0.1, rtol = 123456.789, mode = "
    "#stablehlo.result_accuracy_mode<TOLERANCE>>",
    "#stablehlo.bounds<3, ?>",
    '#stablehlo.replica_group_mesh_axes<mesh = @m, axes = [#stablehlo.axis_ref<name = "x", sub_axis_info '
    "= (1)2>]>",
    '#stablehlo.replica_group_mesh_axes<mesh = #stablehlo.mesh<axes = [<name = "x", size = 2>]>, axes = []>',
    *(
        f"#stablehlo<{kind}>"
        for kind in ("precision HIGHEST", "comparison_direction GE", "comparison_type TOTALORDER")
    ),
    *(f"#stablehlo<{kind}>" for kind in ("fft_type IRFFT", "transpose ADJOINT", "rng_algorithm PHILOX")),
    "#stablehlo<rng_distribution NORMAL>",
]
TYPES = [
    "!stablehlo.token",
    "!stablehlo.future<tensor<2xf32>, tensor<f32>>",
    "tensor<?x2xf32, #stablehlo.bounds<4, ?>>",
]


@pytest.mark.parametrize("value", [*ATTRIBUTES, *TYPES])
def test_attributes_and_types_print_as_jaxlib_prints_them(value):
    module = parse(f'module attributes {{test.value = {value}}} {{ sdy.mesh @m = <["x"=4]> }}')
    printed = module.operation.get_asm(binary=True, print_generic_op_form=True)
    assert _core.Module.parse(printed).print(locations=False) == printed


def test_raw_convolution_numbers():
    # Only raw numbers can say this; jaxlib 0.11.2 aborts when it prints them, so jaxlib is not asked.
    value = (
        "#stablehlo.conv<raw input_batch_dimension = 5, input_feature_dimension = 1, "
        "input_spatial_dimensions = [2], "
        "kernel_input_feature_dimension = 0, kernel_output_feature_dimension = 1, kernel_spatial_dimensions "
        "= [2], "
        "output_batch_dimension = 0, output_feature_dimension = 1, output_spatial_dimensions = [2]>"
    )
    module = _core.Module.parse(f"module attributes {{test.value = {value}}} {{}}")
    assert value.encode() in module.print()


@pytest.mark.parametrize(
    "value",
    [
        "#stablehlo.dot<lhs_contracting_dimensions = [1], lhs_contracting_dimensions = [1]>",
        "#stablehlo.dot<novelty = [1]>",
        "#stablehlo.gather<offset_dims = [99999999999999999999]>",
        "#stablehlo.conv<[b, 0, 5, f]x[0, 1, i, o]->[b, 0, 1, f]>",
        "#stablehlo.conv<[b, b, 0, f]x[0, 1, i, o]->[b, 0, 1, f]>",
        "#stablehlo.conv<[0]x[0]->[0]>",
        "#stablehlo.dot_algorithm<lhs_precision_type = tf32>",
        "#stablehlo.result_accuracy<>",
        "#stablehlo<precision NOVEL>",
        "tensor<2xf32, #stablehlo.bounds<4, ?>>",
    ],
)
def test_malformed_attributes_are_errors(value):
    with pytest.raises(_core.DiagnosticError) as caught:
        _core.Module.parse(f"module attributes {{test.value = {value}}} {{}}")
    assert caught.value.diagnostics
