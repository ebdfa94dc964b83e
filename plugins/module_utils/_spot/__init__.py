# -*- coding: utf-8 -*-
# Copyright: University of Melbourne Centre for Cancer Research
# MIT License (see LICENSE or https://opensource.org/license/mit)
"""Chooses where to launch spot instances, and keeps the log of those launched."""
