// Operations that compute each element of the result from the elements at the same place.
#ifndef FARRIER_STABLEHLO_ELEMENTWISE_OPS
#define FARRIER_STABLEHLO_ELEMENTWISE_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"

class StableHLO_UnaryOp<string mnemonic, string what>
    : StableHLO_Op<mnemonic, what, StableHLO_ElementwiseTraits, (ins AnyTensor:$operand), (outs AnyTensor:$result)>;

class StableHLO_TranscendentalOp<string mnemonic, string what>
    : StableHLO_Op<mnemonic, what, StableHLO_ElementwiseTraits,
                   (ins AnyTensor:$operand, OptionalAttr<StableHLO_ResultAccuracy>:$result_accuracy),
                   (outs AnyTensor:$result)>;

// Commutative only where swapping operands cannot change a bit of the result: not maximum and minimum, whose
// choice between -0 and +0 may depend on the order.
class StableHLO_BinaryOp<string mnemonic, string what, list<Trait> traits = []>
    : StableHLO_Op<mnemonic, what, !listconcat(StableHLO_ElementwiseTraits, traits),
                   (ins AnyTensor:$lhs, AnyTensor:$rhs), (outs AnyTensor:$result)>;

def StableHLO_AbsOp : StableHLO_UnaryOp<"abs", "Absolute value">;
def StableHLO_CeilOp : StableHLO_UnaryOp<"ceil", "Rounds up">;
def StableHLO_ClzOp : StableHLO_UnaryOp<"count_leading_zeros", "Counts leading zero bits">;
def StableHLO_FloorOp : StableHLO_UnaryOp<"floor", "Rounds down">;
def StableHLO_ImagOp : StableHLO_UnaryOp<"imag", "Imaginary part">;
def StableHLO_NegOp : StableHLO_UnaryOp<"negate", "Negation">;
def StableHLO_NotOp : StableHLO_UnaryOp<"not", "Bitwise or logical complement">;
def StableHLO_PopulationCountOp : StableHLO_UnaryOp<"popcnt", "Counts set bits">;
def StableHLO_RealOp : StableHLO_UnaryOp<"real", "Real part">;
def StableHLO_RoundNearestEvenOp : StableHLO_UnaryOp<"round_nearest_even", "Rounds to nearest, ties to even">;
def StableHLO_RoundOp : StableHLO_UnaryOp<"round_nearest_afz", "Rounds to nearest, ties away from zero">;
def StableHLO_SignOp : StableHLO_UnaryOp<"sign", "Sign of each element">;

def StableHLO_ConvertOp : StableHLO_UnaryOp<"convert", "Converts to another element type"> {
  let hasFolder = 1;
}

def StableHLO_CbrtOp : StableHLO_TranscendentalOp<"cbrt", "Cube root">;
def StableHLO_CosineOp : StableHLO_TranscendentalOp<"cosine", "Cosine">;
def StableHLO_ExpOp : StableHLO_TranscendentalOp<"exponential", "Exponential">;
def StableHLO_Expm1Op : StableHLO_TranscendentalOp<"exponential_minus_one", "Exponential minus one">;
def StableHLO_Log1pOp : StableHLO_TranscendentalOp<"log_plus_one", "Logarithm of one plus the operand">;
def StableHLO_LogOp : StableHLO_TranscendentalOp<"log", "Natural logarithm">;
def StableHLO_LogisticOp : StableHLO_TranscendentalOp<"logistic", "Logistic sigmoid">;
def StableHLO_RsqrtOp : StableHLO_TranscendentalOp<"rsqrt", "Reciprocal square root">;
def StableHLO_SineOp : StableHLO_TranscendentalOp<"sine", "Sine">;
def StableHLO_SqrtOp : StableHLO_TranscendentalOp<"sqrt", "Square root">;
def StableHLO_TanOp : StableHLO_TranscendentalOp<"tan", "Tangent">;
def StableHLO_TanhOp : StableHLO_TranscendentalOp<"tanh", "Hyperbolic tangent">;

def StableHLO_AddOp : StableHLO_BinaryOp<"add", "Addition, or logical or of booleans", [Commutative]>;
def StableHLO_AndOp : StableHLO_BinaryOp<"and", "Bitwise or logical and", [Commutative]>;
def StableHLO_Atan2Op : StableHLO_BinaryOp<"atan2", "Angle of the point (rhs, lhs)">;
def StableHLO_ComplexOp : StableHLO_BinaryOp<"complex", "Complex number from real and imaginary parts">;
def StableHLO_DivOp : StableHLO_BinaryOp<"divide", "Division">;
def StableHLO_MaxOp : StableHLO_BinaryOp<"maximum", "Maximum, or logical or of booleans">;
def StableHLO_MinOp : StableHLO_BinaryOp<"minimum", "Minimum, or logical and of booleans">;
def StableHLO_MulOp : StableHLO_BinaryOp<"multiply", "Product, or logical and of booleans", [Commutative]>;
def StableHLO_OrOp : StableHLO_BinaryOp<"or", "Bitwise or logical or", [Commutative]>;
def StableHLO_PowOp : StableHLO_BinaryOp<"power", "lhs to the power of rhs">;
def StableHLO_RemOp : StableHLO_BinaryOp<"remainder", "Remainder of the division">;
def StableHLO_ShiftLeftOp : StableHLO_BinaryOp<"shift_left", "Left shift">;
def StableHLO_ShiftRightArithmeticOp : StableHLO_BinaryOp<"shift_right_arithmetic", "Right shift, sign kept">;
def StableHLO_ShiftRightLogicalOp : StableHLO_BinaryOp<"shift_right_logical", "Right shift, zeros in">;
def StableHLO_SubtractOp : StableHLO_BinaryOp<"subtract", "Subtraction">;
def StableHLO_XorOp : StableHLO_BinaryOp<"xor", "Bitwise or logical exclusive or", [Commutative]>;

def StableHLO_CompareOp : StableHLO_Op<"compare", "Compares elements, giving booleans", StableHLO_ElementwiseTraits,
    (ins AnyTensor:$lhs, AnyTensor:$rhs, StableHLO_ComparisonDirectionAttr:$comparison_direction,
         OptionalAttr<StableHLO_ComparisonTypeAttr>:$compare_type),
    (outs AnyTensor:$result)>;

def StableHLO_IsFiniteOp : StableHLO_Op<"is_finite", "Whether each element is neither infinite nor NaN",
    StableHLO_ElementwiseTraits, (ins AnyTensor:$x), (outs AnyTensor:$y)>;

def StableHLO_ReducePrecisionOp : StableHLO_Op<"reduce_precision",
    "Rounds to a format of given widths and back", StableHLO_ElementwiseTraits,
    (ins AnyTensor:$operand, I32Attr:$exponent_bits, I32Attr:$mantissa_bits), (outs AnyTensor:$output)>;

// `pred` of select, `min` and `max` of clamp may be scalars beside a tensor: no Elementwise trait.
def StableHLO_SelectOp : StableHLO_Op<"select", "Chooses between two tensors by a predicate", [Pure],
    (ins AnyTensor:$pred, AnyTensor:$on_true, AnyTensor:$on_false), (outs AnyTensor:$result)> {
  let hasFolder = 1;
}

def StableHLO_ClampOp : StableHLO_Op<"clamp", "Limits elements to a range", [Pure],
    (ins AnyTensor:$min, AnyTensor:$operand, AnyTensor:$max), (outs AnyTensor:$result)>;

def StableHLO_UniformQuantizeOp : StableHLO_UnaryOp<"uniform_quantize", "Converts to a quantized type">;
def StableHLO_UniformDequantizeOp : StableHLO_UnaryOp<"uniform_dequantize", "Converts from a quantized type">;

#endif // FARRIER_STABLEHLO_ELEMENTWISE_OPS
