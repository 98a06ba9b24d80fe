"""The four terms of FGD, written from the formulas as loops over cells in float64."""

import math

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData

TERMS = ('foreground', 'background', 'attention', 'context')


def fgd_samples(boxes, shapes, padded, **meta):
    """Data samples with boxes, of images of ``shapes`` in a batch of the ``padded`` size."""
    result = []
    for given, shape in zip(boxes, shapes):
        info = dict(dict(img_shape=shape, pad_shape=shape, batch_input_shape=padded), **meta)
        instances = InstanceData(bboxes=torch.tensor(given).reshape(-1, 4))
        result.append(BaseDataElement(metainfo=info, gt_instances=instances))
    return result


def reference_masks(boxes, image_size, map_size):
    """Foreground and background mask of one image, cell by cell."""
    (rows, columns), (height, width) = map_size, image_size
    foreground = np.zeros(map_size)
    for left, top, right, bottom in boxes:
        first_row, last_row = math.floor(top * rows / height), math.ceil(bottom * rows / height)
        first, last = math.floor(left * columns / width), math.ceil(right * columns / width)
        for i in range(rows):
            for j in range(columns):
                if first_row <= i <= last_row and first <= j <= last:
                    area = (last_row - first_row + 1) * (last - first + 1)
                    foreground[i, j] = max(foreground[i, j], 1 / area)
    outside = [(i, j) for i in range(rows) for j in range(columns) if foreground[i, j] == 0]
    background = np.zeros(map_size)
    for cell in outside:
        background[cell] = 1 / len(outside)
    return foreground, background


def softmax(values):
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def reference_attention(feature, temperature):
    """Spatial and channel attention of one image, a feature of shape (C, H, W)."""
    channels, rows, columns = feature.shape
    cells = [(i, j) for i in range(rows) for j in range(columns)]
    of_cells = softmax([np.mean(np.abs(feature[:, i, j])) / temperature for i, j in cells])
    of_channels = softmax([np.mean(np.abs(feature[c])) / temperature for c in range(channels)])
    spatial = np.array(of_cells).reshape(rows, columns) * rows * columns
    return spatial, np.array(of_channels) * channels


def reference(student, teacher, boxes, sizes, temperature=0.5):
    """The four terms; student and teacher are (feature, context), boxes in pixels."""
    (f_s, r_s), (f_t, r_t) = (
        tuple(x.detach().double().numpy() for x in side) for side in (student, teacher)
    )
    batch, channels, rows, columns = f_s.shape
    terms = dict.fromkeys(TERMS, 0.0)
    for b in range(batch):
        foreground, background = reference_masks(boxes[b], sizes[b], (rows, columns))
        spatial_s, channel_s = reference_attention(f_s[b], temperature)
        spatial_t, channel_t = reference_attention(f_t[b], temperature)
        for c in range(channels):
            terms['attention'] += abs(channel_t[c] - channel_s[c]) / batch
            for i in range(rows):
                for j in range(columns):
                    weight = spatial_t[i, j] * channel_t[c] / batch
                    squared = (f_t[b, c, i, j] - f_s[b, c, i, j]) ** 2
                    terms['foreground'] += weight * foreground[i, j] * squared
                    terms['background'] += weight * background[i, j] * squared
                    terms['context'] += (r_t[b, c, i, j] - r_s[b, c, i, j]) ** 2 / batch
        terms['attention'] += np.abs(spatial_t - spatial_s).sum() / batch
    return terms
