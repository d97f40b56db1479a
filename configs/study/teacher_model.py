# The study's teacher: the demo's, trained for longer.
_base_ = ["../demo/teacher_model.py"]

train_cfg = dict(max_epochs=28)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=2, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=2e-5, begin=2, end=28, by_epoch=True, convert_to_iter_based=True),
]
