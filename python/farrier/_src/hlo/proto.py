"""The part of XLA's HloModuleProto that farrier reads, declared for the `protobuf` library.

Field names and numbers are interface facts of XLA (xla/service/hlo.proto, xla/xla_data.proto); fields that
are not listed stay unread. The messages live in a package of our own so that a process that also loads
XLA's or TensorFlow's declarations sees no clash.
"""

from __future__ import annotations

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "farrier.hlo"

# message -> (field, number, type); a type that starts with "*" is repeated, a capital letter names a message.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Layout": (
        ("minor_to_major", 1, "*int64"),
        ("element_size_in_bits", 7, "int64"),
        ("memory_space", 8, "int64"),
    ),
    "Shape": (
        ("element_type", 2, "int32"),
        ("dimensions", 3, "*int64"),
        ("tuple_shapes", 4, "*Shape"),
        ("layout", 5, "Layout"),
    ),
    "OpMetadata": (
        ("op_type", 1, "string"),
        ("op_name", 2, "string"),
        ("source_file", 3, "string"),
        ("source_line", 4, "int32"),
    ),
    "WindowDimension": (("size", 1, "int64"), ("stride", 2, "int64")),
    "Window": (("dimensions", 1, "*WindowDimension"),),
    "ConvolutionDimensionNumbers": (
        ("kernel_input_feature_dimension", 3, "int64"),
        ("kernel_output_feature_dimension", 4, "int64"),
        ("kernel_spatial_dimensions", 6, "*int64"),
        ("input_batch_dimension", 7, "int64"),
        ("input_feature_dimension", 8, "int64"),
        ("output_batch_dimension", 9, "int64"),
        ("output_feature_dimension", 10, "int64"),
    ),
    "DotDimensionNumbers": (
        ("lhs_contracting_dimensions", 1, "*int64"),
        ("rhs_contracting_dimensions", 2, "*int64"),
        ("lhs_batch_dimensions", 3, "*int64"),
        ("rhs_batch_dimensions", 4, "*int64"),
    ),
    "RaggedDotDimensionNumbers": (
        ("dot_dimension_numbers", 1, "DotDimensionNumbers"),
        ("lhs_ragged_dimensions", 2, "*int64"),
        ("rhs_group_dimensions", 3, "*int64"),
    ),
    "ReplicaGroup": (("replica_ids", 1, "*int64"),),
    "IotaReplicaGroupList": (
        ("num_replica_groups", 1, "int64"),
        ("num_devices_per_group", 2, "int64"),
        ("iota_reshape_dims", 3, "*int64"),
        ("iota_transpose_perm", 4, "*int32"),
    ),
    "CollectiveDeviceList": (
        ("replica_groups", 1, "*ReplicaGroup"),
        ("iota_replica_group_list", 2, "IotaReplicaGroupList"),
    ),
    "SourceTarget": (("source", 1, "int64"), ("target", 2, "int64")),
    "OutputOperandAliasing": (
        ("output_shape_index", 1, "*int64"),
        ("operand_index", 2, "int64"),
        ("operand_shape_index", 3, "*int64"),
    ),
    "HloInstruction": (
        ("name", 1, "string"),
        ("opcode", 2, "string"),
        ("shape", 3, "Shape"),
        ("metadata", 7, "OpMetadata"),
        ("parameter_number", 9, "int64"),
        ("fusion_kind", 11, "string"),
        ("tuple_index", 13, "int64"),
        ("dimensions", 14, "*int64"),
        ("window", 15, "Window"),
        ("convolution_dimension_numbers", 16, "ConvolutionDimensionNumbers"),
        ("channel_id", 26, "int64"),
        ("custom_call_target", 28, "string"),
        ("dot_dimension_numbers", 30, "DotDimensionNumbers"),
        ("id", 35, "int64"),
        ("operand_ids", 36, "*int64"),
        ("control_predecessor_ids", 37, "*int64"),
        ("called_computation_ids", 38, "*int64"),
        ("backend_config", 43, "bytes"),
        ("replica_groups", 49, "*ReplicaGroup"),
        ("feature_group_count", 50, "int64"),
        ("source_target_pairs", 52, "*SourceTarget"),
        ("batch_group_count", 58, "int64"),
        ("is_host_transfer", 47, "bool"),
        ("output_operand_aliasing", 74, "*OutputOperandAliasing"),
        ("async_execution_thread", 79, "string"),
        ("collective_device_list", 87, "CollectiveDeviceList"),
        ("ragged_dot_dimension_numbers", 90, "RaggedDotDimensionNumbers"),
    ),
    "HloComputation": (
        ("name", 1, "string"),
        ("instructions", 2, "*HloInstruction"),
        ("id", 5, "int64"),
        ("root_id", 6, "int64"),
        ("is_fusion_computation", 7, "bool"),
        ("execution_thread", 8, "string"),
    ),
    "HloModule": (
        ("name", 1, "string"),
        ("entry_computation_name", 2, "string"),
        ("computations", 3, "*HloComputation"),
        ("id", 5, "int64"),
        ("entry_computation_id", 6, "int64"),
    ),
}

_SCALARS = {
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
}


@functools.cache
def _module_class():
    proto = descriptor_pb2.FileDescriptorProto(name="farrier/hlo.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = proto.message_type.add(name=name)
        for field, number, kind in fields:
            repeated = kind.startswith("*")
            kind = kind.lstrip("*")
            label = (
                descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
                if repeated
                else descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
            )
            if kind in _SCALARS:
                message.field.add(name=field, number=number, type=_SCALARS[kind], label=label)
            else:
                message.field.add(
                    name=field,
                    number=number,
                    type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
                    type_name=f".{_PACKAGE}.{kind}",
                    label=label,
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.HloModule"))


def parse_module(data: bytes):
    """Parses a serialized HloModuleProto.

    Raises:
      google.protobuf.message.DecodeError: the bytes are not a protobuf message.
    """
    return _module_class().FromString(data)
