"""What exporting a run does: tuning its kernel, writing it as a program, and describing it on a model card."""
