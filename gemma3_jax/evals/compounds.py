"""16,384 made-up words, such as `stonebridge`: all different, none inside another, the same on every machine."""

_FIRST = """
    amber ash bark bean bell birch blue bolt bone book brass bread brick brown brush cake candle cedar chalk cheese
    cherry clay clock cloud coal copper cork corn cotton cream crow crystal dawn deer dew dusk dust eagle elm
    ember feather fern fig flax flint fog forest fox frost fruit gold goose grape green hare hazel heron holly honey ice
    ink iron ivory jade kelp kettle lace lamp lark laurel leaf lemon lily lime linen lion maple marble mint mist moss
    oak olive onion opal otter owl paper peach pearl pepper pewter pine plum poppy quartz quill rain raven reed rose
    ruby rust sable salt sand silk silver slate smoke snow spruce steel stone storm straw sugar swan thistle thorn
    timber topaz velvet violet walnut willow wolf wool
""".split()
_SECOND = """
    alley arch bank barn basin bay beach bench bend bluff board boat bowl box bridge brook cabin camp canal cape castle
    cave chapel chest cliff coast court cove crest dale dam dell desk dock dome door drift dune fall farm fence
    field fjord ford fork fort garden gate glade glen gorge grove gulf gully hall harbor haven head hedge hill hollow
    house inlet isle jetty keep kiln lagoon lake land lane ledge light lodge loft marsh meadow mill mine moat moor mound
    mouth nest orchard park path peak pier plain plaza point pond pool port pub quay ranch reef ridge river road roof
    room shelf shelter shore spire spring square stable station street tent tower town trail tunnel vale valley vault
    view villa wall wharf wheel window wood
""".split()
WORDS = tuple(first + second for first in _FIRST for second in _SECOND)
