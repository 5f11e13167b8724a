"""Lion as it was published, which PyTorch does not have."""

from __future__ import annotations

from outside import required

torch = required("torch", "GPUBP_REQUIRE_TORCH")


class Lion(torch.optim.Optimizer):
    """Chen et al., "Symbolic discovery of optimization algorithms" (2023), program 1."""

    def __init__(self, parameters, lr, beta1=0.9, beta2=0.99, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]
            for p in group["params"]:
                momentum = self.state[p].get("momentum", torch.zeros_like(p))
                update = torch.sign(beta1 * momentum + (1 - beta1) * p.grad)
                p.sub_(lr * (update + group["weight_decay"] * p))
                self.state[p]["momentum"] = beta2 * momentum + (1 - beta2) * p.grad
