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
    # Of constants farrier writes and reads integers alone.
    "Literal": (
        ("shape", 1, "Shape"),
        ("s32s", 4, "*int32"),
        ("s64s", 5, "*int64"),
        ("u32s", 6, "*uint32"),
        ("u64s", 7, "*uint64"),
        ("f32s", 8, "*float"),
        ("f64s", 9, "*double"),
        ("f16s", 11, "bytes"),
        ("bf16s", 13, "bytes"),
    ),
    "OpMetadata": (
        ("op_type", 1, "string"),
        ("op_name", 2, "string"),
        ("source_file", 3, "string"),
        ("source_line", 4, "int32"),
        ("stack_frame_id", 15, "int32"),
        ("scheduling_name", 16, "string"),
    ),
    "FrontendAttribute": (("key", 1, "string"), ("value", 2, "string")),
    "FrontendAttributes": (("map", 1, "*FrontendAttribute"),),
    "WindowDimension": (
        ("size", 1, "int64"),
        ("stride", 2, "int64"),
        ("padding_low", 3, "int64"),
        ("padding_high", 4, "int64"),
        ("window_dilation", 5, "int64"),
        ("base_dilation", 6, "int64"),
    ),
    "Window": (("dimensions", 1, "*WindowDimension"),),
    "ConvolutionDimensionNumbers": (
        ("kernel_input_feature_dimension", 3, "int64"),
        ("kernel_output_feature_dimension", 4, "int64"),
        ("kernel_spatial_dimensions", 6, "*int64"),
        ("input_batch_dimension", 7, "int64"),
        ("input_feature_dimension", 8, "int64"),
        ("output_batch_dimension", 9, "int64"),
        ("output_feature_dimension", 10, "int64"),
        ("input_spatial_dimensions", 11, "*int64"),
        ("output_spatial_dimensions", 12, "*int64"),
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
    # Replica groups as axes of a mesh: all devices that differ only along `axes` form a group.
    "MeshAxesReplicaGroups": (("mesh", 1, "Mesh"), ("axes", 2, "*AxisRef")),
    "Mesh": (("axes", 1, "*MeshAxis"), ("device_ids", 2, "*int64")),
    "MeshAxis": (("name", 1, "string"), ("size", 2, "int64")),
    "AxisRef": (("mesh_axis_index", 1, "int64"), ("sub_axis_info", 2, "SubAxis")),
    "SubAxis": (("pre_size", 1, "int64"), ("size", 2, "int64")),
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
        ("literal", 8, "Literal"),
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
        ("comparison_direction", 63, "string"),
        ("custom_call_has_side_effect", 65, "bool"),
        ("frontend_attributes", 68, "FrontendAttributes"),
        ("is_host_transfer", 47, "bool"),
        ("output_operand_aliasing", 74, "*OutputOperandAliasing"),
        ("async_execution_thread", 79, "string"),
        ("collective_device_list", 87, "CollectiveDeviceList"),
        ("ragged_dot_dimension_numbers", 90, "RaggedDotDimensionNumbers"),
        ("iota_collective_device_list", 92, "IotaReplicaGroupList"),
        ("mesh_axes_replica_groups", 93, "MeshAxesReplicaGroups"),
    ),
    "HloComputation": (
        ("name", 1, "string"),
        ("instructions", 2, "*HloInstruction"),
        ("id", 5, "int64"),
        ("program_shape", 4, "bytes"),
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
        ("schedule", 7, "Schedule"),
        ("input_output_alias", 8, "InputOutputAlias"),
        ("device_assignment", 15, "DeviceAssignment"),
        ("stack_frame_index", 17, "StackFrameIndex"),
    ),
    # A map field is on the wire a repeated message of key and value.
    "Schedule": (("sequences", 1, "*ScheduleEntry"),),
    "ScheduleEntry": (("computation_id", 1, "int64"), ("sequence", 2, "InstructionSequence")),
    "InstructionSequence": (("instruction_ids", 1, "*int64"),),
    "DeviceAssignment": (("replica_count", 1, "int64"), ("computation_count", 2, "int64")),
    "InputOutputAlias": (("entries", 1, "*AliasEntry"),),
    "AliasEntry": (
        ("output_shape_index", 1, "*int64"),
        ("parameter_number", 2, "int64"),
        ("parameter_shape_index", 3, "*int64"),
    ),
    "StackFrameIndex": (
        ("file_names", 1, "*string"),
        ("function_names", 2, "*string"),
        ("file_locations", 3, "*FileLocation"),
        ("stack_frames", 4, "*StackFrame"),
    ),
    "FileLocation": (
        ("file_name_id", 1, "int32"),
        ("function_name_id", 2, "int32"),
        ("line", 3, "int32"),
        ("column", 4, "int32"),
    ),
    "StackFrame": (("file_location_id", 1, "int32"), ("parent_frame_id", 2, "int32")),
    "LogicalBufferLocation": (("shape_index", 3, "*int64"), ("instruction_id", 4, "int64")),
    "LogicalBuffer": (
        ("id", 1, "int64"),
        ("size", 2, "int64"),
        ("defined_at", 3, "LogicalBufferLocation"),
        ("color", 4, "int64"),
    ),
    "AssignedBuffer": (("logical_buffer_id", 1, "int64"), ("offset", 2, "int64"), ("size", 3, "int64")),
    "BufferAllocation": (
        ("index", 1, "int64"),
        ("size", 2, "int64"),
        ("is_thread_local", 3, "bool"),
        ("is_entry_computation_parameter", 5, "bool"),
        ("parameter_number", 6, "int64"),
        ("maybe_live_out", 7, "bool"),
        ("color", 8, "int64"),
        ("assigned", 9, "*AssignedBuffer"),
        ("parameter_shape_index", 10, "*int64"),
        ("is_tuple", 11, "bool"),
        ("is_constant", 12, "bool"),
    ),
    "HeapEvent": (("kind", 1, "int32"), ("buffer_id", 2, "int64"), ("share_with_canonical_id", 5, "int64")),
    "HeapTrace": (
        ("events", 1, "*HeapEvent"),
        ("whole_module_simulation", 2, "bool"),
        ("buffer_allocation_index", 3, "int64"),
    ),
    "BufferAssignment": (
        ("logical_buffers", 1, "*LogicalBuffer"),
        ("buffer_allocations", 3, "*BufferAllocation"),
        ("heap_simulator_traces", 4, "*HeapTrace"),
    ),
    # XLA's performance tables (xla/service/gpu/model/hlo_op_profile.proto).
    "HloInstructionProfile": (
        ("instruction", 1, "HloInstruction"),
        ("flops", 4, "int64"),
        ("operands", 5, "*HloInstruction"),
        ("network_throughput_bytes_per_sec", 6, "int64"),
    ),
    "HloInstructionProfileList": (("entries", 1, "*HloInstructionProfile"),),
    "DeviceProfiles": (("key", 1, "string"), ("value", 2, "HloInstructionProfileList")),
    "DeviceHloInstructionProfiles": (("entries", 2, "*DeviceProfiles"),),
    # The module stays bytes here: `Module` parses it.
    "Hlo": (("hlo_module", 1, "bytes"), ("buffer_assignment", 3, "BufferAssignment")),
}

_SCALARS = {
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "float": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
}


def declare(package: str, messages: dict[str, tuple[tuple[str, int, str], ...]]):
    """A pool that holds `messages`, in the notation of `_MESSAGES`, under a package of its own."""
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(
        name=package.replace(".", "/") + ".proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = proto.message_type.add(name=name)
        for key, number, kind in fields:
            label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind in _SCALARS:
                message.field.add(name=key, number=number, type=_SCALARS[kind], label=label)
            else:
                message.field.add(
                    name=key,
                    number=number,
                    type=field.TYPE_MESSAGE,
                    type_name=f".{package}.{kind}",
                    label=label,
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return pool


@functools.cache
def _pool():
    return declare(_PACKAGE, _MESSAGES)


@functools.cache
def message(name: str):
    """The class of a message, by its name here."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def parse_module(data: bytes):
    """Parses a serialized HloModuleProto.

    Raises:
      google.protobuf.message.DecodeError: the bytes are not a protobuf message.
    """
    return message("HloModule").FromString(data)


def parse_hlo(data: bytes):
    """Parses a serialized HloProto, as XLA's dumps hold it: a module's bytes and its buffer assignment.

    Raises:
      google.protobuf.message.DecodeError: the bytes are not a protobuf message.
    """
    return message("Hlo").FromString(data)
