# A voxel CenterPoint as small as the demo's pillar one: voxels of 0.1 m over +-12.8 m, maps of 32 x 32 cells of 0.8 m.
_base_ = ["../../../configs/demo/teacher_model.py"]
voxel_size = [0.1, 0.1, 0.2]

model = dict(
    data_preprocessor=dict(voxel_layer=dict(voxel_size=voxel_size, max_voxels=(20000, 20000))),
    pts_voxel_encoder=dict(_delete_=True, type="HardSimpleVFE", num_features=5),
    pts_middle_encoder=dict(
        _delete_=True,
        type="SparseEncoder",
        in_channels=5,
        sparse_shape=[41, 256, 256],
        output_channels=16,
        order=("conv", "norm", "act"),
        encoder_channels=((16, 16, 16), (16, 16, 16), (16, 16, 16), (16, 16)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, [0, 1, 1]), (0, 0)),
        block_type="basicblock",
    ),
    pts_backbone=dict(in_channels=32, out_channels=[32, 64], layer_nums=[2, 2], layer_strides=[1, 2]),
    pts_neck=dict(in_channels=[32, 64], out_channels=[32, 32], upsample_strides=[1, 2]),
    pts_bbox_head=dict(in_channels=64, bbox_coder=dict(out_size_factor=8, voxel_size=voxel_size[:2])),
    train_cfg=dict(pts=dict(grid_size=[256, 256, 40], voxel_size=voxel_size, out_size_factor=8)),
    test_cfg=dict(pts=dict(out_size_factor=8, voxel_size=voxel_size[:2])),
)
epochs = 1
train_cfg = dict(by_epoch=True, max_epochs=epochs)
param_scheduler = None
