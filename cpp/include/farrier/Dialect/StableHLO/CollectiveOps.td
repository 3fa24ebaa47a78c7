// Operations in which several devices take part.
#ifndef FARRIER_STABLEHLO_COLLECTIVE_OPS
#define FARRIER_STABLEHLO_COLLECTIVE_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"

defvar StableHLO_OptChannel = OptionalAttr<StableHLO_ChannelHandle>;

def StableHLO_AllGatherOp : StableHLO_VerifiedOp<"all_gather", "Joins the operands of a group's devices",
    [StableHLO_Collective],
    (ins Variadic<AnyTensor>:$operands, I64Attr:$all_gather_dim, StableHLO_ReplicaGroups:$replica_groups,
         StableHLO_OptChannel:$channel_handle, UnitAttr:$use_global_device_ids),
    (outs Variadic<AnyTensor>:$results)>;

def StableHLO_AllReduceOp : StableHLO_VerifiedOp<"all_reduce", "Combines the operands of a group's devices",
    [RecursiveMemoryEffects],
    (ins Variadic<AnyTensor>:$operands, StableHLO_ReplicaGroups:$replica_groups,
         StableHLO_OptChannel:$channel_handle, UnitAttr:$use_global_device_ids),
    (outs Variadic<AnyTensor>:$results)> {
  let regions = (region SizedRegion<1>:$computation);
}

def StableHLO_AllToAllOp : StableHLO_VerifiedOp<"all_to_all", "Splits operands and exchanges the parts",
    [StableHLO_Collective],
    (ins Variadic<AnyTensor>:$operands, I64Attr:$split_dimension, I64Attr:$concat_dimension, I64Attr:$split_count,
         StableHLO_ReplicaGroups:$replica_groups, StableHLO_OptChannel:$channel_handle),
    (outs Variadic<AnyTensor>:$results)>;

def StableHLO_ReduceScatterOp : StableHLO_VerifiedOp<"reduce_scatter",
    "Combines the operands of a group's devices and gives each a part", [RecursiveMemoryEffects],
    (ins AnyTensor:$operand, I64Attr:$scatter_dimension, StableHLO_ReplicaGroups:$replica_groups,
         StableHLO_OptChannel:$channel_handle, UnitAttr:$use_global_device_ids),
    (outs AnyTensor:$result)> {
  let regions = (region SizedRegion<1>:$computation);
}

def StableHLO_CollectiveReduceOp : StableHLO_VerifiedOp<"collective_reduce",
    "Combines the operands of a group's devices on one of them", [RecursiveMemoryEffects],
    (ins Variadic<AnyTensor>:$operands, StableHLO_ReplicaGroups:$replica_groups,
         StableHLO_OptChannel:$channel_handle, UnitAttr:$use_global_device_ids, UnitAttr:$has_dynamic_root),
    (outs Variadic<AnyTensor>:$results)> {
  let regions = (region SizedRegion<1>:$computation);
}

def StableHLO_CollectiveBroadcastOp : StableHLO_VerifiedOp<"collective_broadcast",
    "Gives every device of a group the operand of one of them", [StableHLO_Collective],
    (ins Variadic<AnyTensor>:$operands, StableHLO_ReplicaGroups:$replica_groups,
         StableHLO_OptChannel:$channel_handle, UnitAttr:$has_dynamic_root),
    (outs Variadic<AnyTensor>:$results)>;

def StableHLO_CollectivePermuteOp : StableHLO_VerifiedOp<"collective_permute", "Sends operands along given pairs of devices",
    [StableHLO_Collective],
    (ins AnyTensor:$operand, I64ElementsAttr:$source_target_pairs, StableHLO_OptChannel:$channel_handle),
    (outs AnyTensor:$result)>;

def StableHLO_CrossReplicaSumOp : StableHLO_VerifiedOp<"cross-replica-sum", "Sums over groups of devices",
    [StableHLO_Collective],
    (ins AnyTensor:$operand, I64ElementsAttr:$replica_groups), (outs AnyTensor:$result)>;

def StableHLO_PartitionIdOp : StableHLO_Op<"partition_id", "This device's partition", [Pure],
    (ins), (outs AnyTensor:$result)>;
def StableHLO_ReplicaIdOp : StableHLO_Op<"replica_id", "This device's replica", [Pure],
    (ins), (outs AnyTensor:$result)>;

// Start and done of one asynchronous operation belong together one to one: no declared effects, so that nothing
// merges, removes or moves them.
def StableHLO_AsyncStartOp : StableHLO_Op<"async_start", "Begins the operation in its region", [],
    (ins Variadic<AnyType>:$operands), (outs AnyType:$result)> {
  let regions = (region SizedRegion<1>:$body);
}
def StableHLO_AsyncDoneOp : StableHLO_Op<"async_done", "Waits for an asynchronous operation", [],
    (ins AnyType:$operand), (outs Variadic<AnyType>:$results)>;

#endif // FARRIER_STABLEHLO_COLLECTIVE_OPS
