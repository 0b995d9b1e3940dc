"""Pictures of attributions, with Captum's names and signatures, and without global state unless asked."""

from .images import ImageVisualizationMethod, visualize_image_attr, visualize_image_attr_multiple
from .masks import draw_mask_border, draw_mask_legend
from .series import TimeseriesVisualizationMethod, visualize_timeseries_attr
from .shades import VisualizeSign
from .words import (
    MarkedText,
    VisualizationDataRecord,
    format_classname,
    format_special_tokens,
    format_tooltip,
    format_word_importances,
    visualize_text,
)

__all__ = [
    "ImageVisualizationMethod",
    "MarkedText",
    "TimeseriesVisualizationMethod",
    "VisualizationDataRecord",
    "VisualizeSign",
    "draw_mask_border",
    "draw_mask_legend",
    "format_classname",
    "format_special_tokens",
    "format_tooltip",
    "format_word_importances",
    "visualize_image_attr",
    "visualize_image_attr_multiple",
    "visualize_text",
    "visualize_timeseries_attr",
]
