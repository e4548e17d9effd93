"""Many runs: the paper's tables and figures (`aurora reproduce`) and tuned comparisons (`aurora sweep`)."""
