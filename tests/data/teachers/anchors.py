# The demo's detector with a PointPillars anchor head over four columns of the points: no heatmaps.
_base_ = ["../../../configs/demo/teacher_model.py"]
model = dict(
    type="MVXFasterRCNN",
    pts_voxel_encoder=dict(in_channels=4),
    pts_bbox_head=dict(
        _delete_=True,
        type="Anchor3DHead",
        num_classes=10,
        in_channels=96,
        feat_channels=96,
        use_direction_classifier=True,
        anchor_generator=dict(
            type="AlignedAnchor3DRangeGenerator",
            ranges=[[-12.8, -12.8, -1.8, 12.8, 12.8, -1.8]],
            scales=[1],
            sizes=[[4.6, 2.0, 1.7]],
            custom_values=[0, 0],
            rotations=[0, 1.57],
            reshape_out=True,
        ),
        bbox_coder=dict(type="DeltaXYZWLHRBBoxCoder", code_size=9),
        loss_cls=dict(type="mmdet.FocalLoss", use_sigmoid=True),
        loss_bbox=dict(type="mmdet.SmoothL1Loss"),
        loss_dir=dict(type="mmdet.CrossEntropyLoss"),
    ),
    train_cfg=None,
    test_cfg=None,
)
class_names = [
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
]  # fmt: skip
test_dataloader = dict(
    dataset=dict(
        metainfo=dict(classes=class_names),
        pipeline=[dict(type="LoadPointsFromMultiSweeps", sweeps_num=3, use_dim=[0, 1, 2, 4])],
    )
)
