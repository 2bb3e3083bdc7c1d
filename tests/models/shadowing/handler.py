"""A handler of an archive whose modules bear names of the standard library."""

import helper


class ShadowingHandler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [{"helper": helper.NAME} for _ in data]
