"""Distillation from a store of Offline DistillBEV in any code base: Python 3.8, torch 1.9 (docs/plugins.md)."""
