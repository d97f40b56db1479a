# A second teacher for the study: pillars of 0.2 m instead of 0.4 m, to maps of the same 32 x 32 cells.
_base_ = ["teacher_model.py"]

pillar = [0.2, 0.2, 8.0]
canvas = [128, 128]

model = dict(
    data_preprocessor=dict(voxel_layer=dict(voxel_size=pillar)),
    pts_voxel_encoder=dict(voxel_size=pillar),
    pts_middle_encoder=dict(output_shape=canvas),
    pts_neck=dict(upsample_strides=[0.5, 1, 2]),
    pts_bbox_head=dict(bbox_coder=dict(out_size_factor=4, voxel_size=pillar[:2])),
    train_cfg=dict(pts=dict(grid_size=[*canvas, 1], voxel_size=pillar, out_size_factor=4)),
    test_cfg=dict(pts=dict(out_size_factor=4, voxel_size=pillar[:2])),
)
