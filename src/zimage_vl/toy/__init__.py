from .judging import Verdict, judge
from .world import BACKGROUNDS, COLOURS, SHAPES, SIZE, Scene, draw_scene
