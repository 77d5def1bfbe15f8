"""What the tracker asks of a device, as the dispatcher sees it where an operator has no kernel for all backends."""

# Between the host and a device, which each backend has in its own way.
STRUCTURAL = {"aten::_copy_from", "aten::_local_scalar_dense"}

OPERATORS = STRUCTURAL | {
    "aten::__rshift__.Scalar",
    "aten::abs.out",
    "aten::add.out",
    "aten::amax.out",
    "aten::amin.out",
    "aten::bitwise_and.Tensor_out",
    "aten::bitwise_not.out",
    "aten::bucketize.Tensor",
    "aten::cat.out",
    "aten::clamp.out",
    "aten::div.out",
    "aten::eq.Scalar_out",
    "aten::fill_.Scalar",
    "aten::floor.out",
    "aten::linalg_vector_norm.out",
    "aten::lt.Scalar_out",
    "aten::masked_fill_.Scalar",
    "aten::maximum.out",
    "aten::mul.out",
    "aten::pow.Tensor_Scalar_out",
    "aten::scatter_add.out",
    "aten::sub.out",
    "aten::sum.IntList_out",
    "aten::zero_",
}
