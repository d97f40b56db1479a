"""The camera student: configuration, data, models, the distillation objective, training and evaluation."""
