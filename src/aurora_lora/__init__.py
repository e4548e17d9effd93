"""AuroRA for PEFT."""
