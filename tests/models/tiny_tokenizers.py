"""The smallest architecture that tests of tokenizers have in common."""

QUANTIZER = {"codebook_size": 16, "codebook_dim": 4}
SMALL = {
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "num_norm_groups": 4,
    "quantizer": QUANTIZER,
}
# The architecture of the authors of the method of ICCV 2023.
AUTHORS = {
    "stem_stride": 1,
    "mid_attention": True,
    "num_norm_groups": None,
    "encoder_block_type": "depthwise",
    "resampling": "nearest",
    "output_activation": None,
    "latent_kernel_size": 3,
}
