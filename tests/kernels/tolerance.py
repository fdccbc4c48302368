"""FlashAttention-3's rule for how near is near enough (its tests, hopper/test_flash_attn.py)."""

import torch


def assert_close(out: torch.Tensor, exact: torch.Tensor, low: torch.Tensor) -> None:
    """At most twice the error of the same mathematics in the kernel's dtype, plus twice the rounding at 0.3."""
    assert out.shape == exact.shape
    assert torch.isfinite(out).all()
    same = exact.to(low.dtype)
    atol = 2 * ((same + 0.3 - 0.3) - same).abs().max().double()
    error = (out.double() - exact.double()).abs().max()
    allowed = 2 * (low.double() - exact.double()).abs().max() + atol
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def assert_lse_close(lse: torch.Tensor, exact: torch.Tensor) -> None:
    finite = torch.isfinite(exact)
    assert torch.equal(torch.isfinite(lse), finite)
    allowed = 1e-4 * (1 + exact[finite].abs().amax() if finite.any() else 1)
    assert ((lse[finite].double() - exact[finite].double()).abs() <= allowed).all()
