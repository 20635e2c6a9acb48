"""What ``conf/model`` names: pretrained models, their heads, and where their blocks are."""
