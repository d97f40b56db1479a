# As mmdet3d's projects/BEVFusion, LiDAR only, in small: no voxel encoder, `voxelize_cfg`, `bbox_head`; 80 x 60 pillars
# of 0.4 m, so that rows and columns cannot be taken for one another.
custom_imports = dict(imports=["tests.factories.own_voxels"], allow_failed_imports=False)
point_cloud_range = [-16.0, -12.0, -5.0, 16.0, 12.0, 3.0]
class_names = [
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
]  # fmt: skip
model = dict(
    type="OwnVoxels",
    data_preprocessor=dict(
        type="Det3DDataPreprocessor",
        voxelize_cfg=dict(
            max_num_points=10, point_cloud_range=point_cloud_range, voxel_size=[0.4, 0.4, 8], max_voxels=[4000, 6000]
        ),
    ),
    pts_middle_encoder=dict(type="ScatterAlongX", in_channels=5, channels=16, cells=[80, 60]),
    pts_backbone=dict(type="SECOND", in_channels=16, out_channels=[16, 32], layer_nums=[1, 1], layer_strides=[2, 2]),
    pts_neck=dict(type="SECONDFPN", in_channels=[16, 32], out_channels=[24, 24], upsample_strides=[1, 2]),
    bbox_head=dict(type="Proposals", in_channels=48),
)
test_dataloader = dict(
    dataset=dict(
        metainfo=dict(classes=class_names),
        pipeline=[
            dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
            dict(
                type="LoadPointsFromMultiSweeps", sweeps_num=3, load_dim=5, use_dim=5, pad_empty_sweeps=True,
                remove_close=True,
            ),
            dict(type="PointsRangeFilter", point_cloud_range=point_cloud_range),
            dict(type="Pack3DDetInputs", keys=["points"]),
        ],
    )
)  # fmt: skip
