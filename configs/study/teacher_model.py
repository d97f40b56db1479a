# The study's teacher: the demo's, in fewer and larger steps, for a world of several hundred frames.
_base_ = ["../demo/teacher_model.py"]

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=8)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=2e-5, begin=1, end=8, by_epoch=True, convert_to_iter_based=True),
]
