"""The ranks that share a run, on torch.distributed: how they agree on a run, and how their windows become one."""
