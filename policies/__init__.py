"""What may be: permissions, grants, budgets, restarts; all pure."""
