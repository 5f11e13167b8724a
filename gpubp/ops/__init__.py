"""Array operations: each a reference in array maths and, where it pays, fused kernels with the same signature."""
