# The study's teacher: the demo's over +-12.8 m, with maps of 32 x 32 cells, in larger steps, for 128 frames.
_base_ = ["../demo/teacher_model.py"]

point_cloud_range = [-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]
canvas = [64, 64]
reach = [-16.0, -16.0, -10.0, 16.0, 16.0, 10.0]

model = dict(
    data_preprocessor=dict(voxel_layer=dict(point_cloud_range=point_cloud_range)),
    pts_voxel_encoder=dict(point_cloud_range=point_cloud_range),
    pts_middle_encoder=dict(output_shape=canvas),
    pts_bbox_head=dict(bbox_coder=dict(pc_range=point_cloud_range[:2], post_center_range=reach)),
    train_cfg=dict(pts=dict(grid_size=[*canvas, 1], point_cloud_range=point_cloud_range)),
    test_cfg=dict(pts=dict(post_center_limit_range=reach, pc_range=point_cloud_range[:2])),
)

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=28)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=2, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=2e-5, begin=2, end=28, by_epoch=True, convert_to_iter_based=True),
]
