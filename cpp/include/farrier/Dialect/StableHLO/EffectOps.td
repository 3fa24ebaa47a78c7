// Tokens, communication with the host and with other devices, and random numbers: operations whose order or number
// of executions is part of the program's meaning, and the tokens that order them.
#ifndef FARRIER_STABLEHLO_EFFECT_OPS
#define FARRIER_STABLEHLO_EFFECT_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"

def StableHLO_CreateTokenOp : StableHLO_Op<"create_token", "A token that waits for nothing", [Pure],
    (ins), (outs AnyType:$output)>;
def StableHLO_AfterAllOp : StableHLO_Op<"after_all", "A token that waits for all of its operands", [Pure],
    (ins Variadic<AnyType>:$inputs), (outs AnyType:$result)>;

def StableHLO_InfeedOp : StableHLO_Op<"infeed", "Reads from the host", [StableHLO_SideEffecting],
    (ins AnyType:$token, OptionalAttr<StrAttr>:$infeed_config, OptionalAttr<ArrayAttr>:$layout),
    (outs Variadic<AnyType>:$results)>;
def StableHLO_OutfeedOp : StableHLO_Op<"outfeed", "Writes to the host", [StableHLO_SideEffecting],
    (ins Variadic<AnyType>:$inputs, AnyType:$token, OptionalAttr<StrAttr>:$outfeed_config), (outs AnyType:$result)>;
def StableHLO_SendOp : StableHLO_Op<"send", "Sends to a channel", [StableHLO_SideEffecting],
    (ins Variadic<AnyType>:$inputs, AnyType:$token, StableHLO_ChannelHandle:$channel_handle,
         OptionalAttr<BoolAttr>:$is_host_transfer, OptionalAttr<I64ElementsAttr>:$source_target_pairs),
    (outs AnyType:$result)>;
def StableHLO_RecvOp : StableHLO_Op<"recv", "Receives from a channel", [StableHLO_SideEffecting],
    (ins AnyType:$token, StableHLO_ChannelHandle:$channel_handle, OptionalAttr<BoolAttr>:$is_host_transfer,
         OptionalAttr<I64ElementsAttr>:$source_target_pairs),
    (outs Variadic<AnyType>:$results)>;

// Draws from hidden state: equal operands give different results.
def StableHLO_RngOp : StableHLO_Op<"rng", "Random numbers from hidden state", [StableHLO_Unmergeable],
    (ins AnyTensor:$a, AnyTensor:$b, AnyTensor:$shape, StableHLO_RngDistributionAttr:$rng_distribution),
    (outs AnyTensor:$result)>;

// Carries its state as an operand and a result: a function like any other.
def StableHLO_RngBitGeneratorOp : StableHLO_Op<"rng_bit_generator", "Random bits and the next state", [Pure],
    (ins AnyTensor:$initial_state, StableHLO_RngAlgorithmAttr:$rng_algorithm),
    (outs AnyTensor:$output_state, AnyTensor:$output)>;

#endif // FARRIER_STABLEHLO_EFFECT_OPS
