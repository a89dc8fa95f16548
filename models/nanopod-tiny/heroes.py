"""Who and what the tiny model's stories are about: heroes, names, places, things, weather.

A row of a table parts its fields with `;`.

Everything in this file was written for nanopod and is dedicated to the public domain (CC0-1.0).
"""

from __future__ import annotations


def words(table: str) -> list[str]:
    """Words of a table that are parted by spaces and line ends."""
    return table.split()


# kind; home; favourite food; way of moving. The `sea` heroes only get plots that make sense under water.
LAND = """
fox; in a snug den under an oak tree; ripe berries; trotted
rabbit; in a warm burrow by the meadow; sweet carrots; hopped
bear; in a dry cave on the hill; golden honey; walked
owl; in a hollow tree; warm nut cake; flew
mouse; in a tiny house behind the barn; yellow cheese; scurried
cat; in a cottage with a blue door; fresh milk; padded
dog; on a farm at the end of the lane; crunchy biscuits; ran
duck; in the reeds beside a pond; soft bread; waddled
hedgehog; under a pile of dry leaves; juicy plums; shuffled
squirrel; high up in a pine tree; brown nuts; scampered
deer; at the edge of a birch wood; green clover; stepped
horse; in a red stable; cool apples; galloped
goat; on a rocky hill; fresh thistles; skipped
sheep; on a soft green field; sweet grass; strolled
pig; in a tidy pen behind the farm; yellow corn; trotted
cow; on a wide meadow; summer hay; strolled
hen; in a little wooden coop; golden grain; bustled
frog; on a round lily leaf; plum jam; hopped
turtle; beside a slow river; fresh lettuce; crawled
snail; under a rhubarb leaf; tender leaves; crept
bee; in a busy hive; sweet nectar; flew
ant; in a hill of sand; sugar crumbs; marched
spider; in a silver web by the window; morning dew; climbed
butterfly; among the garden flowers; sweet nectar; fluttered
bird; in a round nest; sunflower seeds; flew
crow; on top of an old tower; red cherries; flew
robin; in a nest of moss; small seeds; flew
goose; on a quiet lake; barley; waddled
swan; on a silver lake; water cress; glided
wolf; in a cave among the pines; warm stew; ran
lion; on a sunny plain; warm stew; walked
tiger; in a deep jungle; mango pie; walked
elephant; near a wide brown river; ripe melons; walked
monkey; in a tall fig tree; yellow bananas; swung
giraffe; among the tall trees; young leaves; walked
zebra; on a wide plain; fresh grass; galloped
kangaroo; on a dry red plain; fresh grass; hopped
koala; in a gum tree; tender leaves; climbed
panda; in a bamboo wood; bamboo cakes; ambled
camel; at the edge of the desert; sweet dates; walked
penguin; on a snowy shore; fish soup; waddled
donkey; in a stone shed; oat cakes; trotted
mole; in a long tunnel under the garden; mushroom soup; shuffled
badger; in a deep sett in the wood; warm porridge; ambled
otter; on a mossy river bank; fish soup; slid
beaver; in a lodge of sticks; birch bark; waddled
bat; in the roof of an old church; ripe figs; flew
lizard; on a warm stone wall; ripe berries; darted
kitten; in a basket by the stove; fresh milk; padded
puppy; in a house near the park; crunchy biscuits; ran
pony; in a small stable; cool apples; trotted
dragon; in a cave full of books; hot pepper soup; flew
robot; in a workshop full of tools; clean oil; rolled
giant; in a stone house in the mountains; giant pancakes; stomped
wizard; in a crooked tower; purple jelly; walked
witch; in a hut on the moor; pumpkin soup; flew
fairy; inside a foxglove flower; honey drops; fluttered
knight; in a small castle; roast potatoes; rode
king; in a golden castle; cherry tart; strode
queen; in a white palace; lemon cake; walked
prince; in a castle by the sea; apple pie; walked
princess; in a tall tower; apple pie; walked
girl; in a house by the river; cherry jam; walked
boy; in a village below the hill; cherry jam; walked
baker; above a small bakery; fresh bread; walked
farmer; on a farm with six cows; corn soup; walked
sailor; in a house near the harbour; fish soup; walked
gardener; in a cottage full of flowers; green peas; walked
teacher; next to the little school; ginger cake; walked
doctor; in the middle of the village; chicken soup; hurried
painter; under a roof with a big window; cheese and bread; walked
astronaut; in a round station among the stars; space noodles; floated
pirate; on a creaky old ship; coconut cake; marched
grandmother; in a cottage that smelled of bread; plum cake; walked
"""

SEA = """
fish; in a bay of clear water; green weed; swam
whale; in the wide blue sea; tiny shrimps; swam
dolphin; near a sunny island; silver herring; swam
octopus; in a garden of coral; tasty clams; swam
crab; under a flat stone on the sea floor; salty weed; scuttled
seal; off a rocky coast; silver herring; swam
shark; beside an old wreck; sea soup; swam
mermaid; in a palace of shells; sea grapes; swam
"""

HE_ONLY = frozenset({"king", "prince", "boy", "wizard"})
SHE_ONLY = frozenset({"queen", "princess", "girl", "witch", "grandmother", "mermaid", "hen", "cow"})

HE_NAMES = words("""
Pip Tom Sam Ben Leo Max Finn Oscar Hugo Otto Felix Jasper Milo Toby Arlo Bruno Rufus Theo Noah Gus Kofi Ravi Emil
Anton Basil Chip Dusty Ned Barnaby Monty
""")
SHE_NAMES = words("""
Lily Mia Nora Ada Ruby Hazel Olive Daisy Poppy Clara Rosa Luna Ivy Willow Molly Bella Greta Tilda Zoe Ella Amara Mei
Juno Maya Fern Pearl Dot Penny Tessa Saffron
""")

ADJECTIVES = words("little small young kind curious brave cheerful shy clever gentle quiet happy busy old")

PLACES = """the forest; the meadow; the garden; the hill; the lake; the village; the river; the harbour; the market;
the orchard; the old mill; the beach; the mountain; the library; the park; the city; the farm; the castle; the island;
the valley; the school; the desert; the jungle; the lighthouse; the bridge"""

TIMES = """sunny morning; windy afternoon; rainy day; cold evening; warm afternoon; misty morning; snowy morning;
bright spring day; quiet summer evening; grey autumn day; cloudy day; frosty morning; fine day"""

OBJECTS = words("""
ball kite lamp lantern clock bell drum key map book boat hat scarf coat boot cup teapot spoon basket blanket pillow
button ring coin box letter pencil paintbrush violin flute whistle umbrella bicycle wagon wheel ladder rope bucket
broom candle mirror door chair table bench jar bottle balloon puppet doll puzzle telescope compass anchor rocket
camera radio telephone guitar piano sandwich cake pie apple pear pumpkin potato egg feather shell stone leaf acorn
seed snowball snowman shoe sock watch train car bus truck ship hammer toy picture song phone house tree flower rose
star necklace crown sword shield magnet wallet suitcase ticket newspaper stamp flag tent sled cookie banana lemon
tomato sofa fork knife plate kettle pan oven brush comb thread needle quilt carpet vase
""")

THINGS = """red scarf; blue kite; brass bell; wooden whistle; green hat; silver key; yellow umbrella; little drum;
story book; striped sock; round basket; toy boat; tin lantern; soft blanket; golden button; paper map; wool mitten"""

# More kinds of hero, each with a random home from `HOMES`.
MORE_KINDS = words("""
llama moose hamster parrot peacock eagle hawk stork pelican raccoon skunk weasel ferret lynx cheetah leopard panther
gorilla chimpanzee sloth armadillo rhino hippo buffalo bison yak ox bull calf lamb chick duckling gosling rooster
turkey ostrich flamingo crane heron swallow sparrow pigeon dove woodpecker magpie toucan toad newt salamander
chameleon crocodile caterpillar beetle ladybird cricket grasshopper firefly moth worm dinosaur unicorn ghost elf
gnome troll ogre goblin mammoth scientist pilot fisherman shepherd cook clown musician soldier nurse student child
baby uncle grandfather tailor carpenter blacksmith miller postman merchant captain detective monster alien dancer
singer engineer inventor
""")

HOMES = """in a small house by the road; under a big old tree; on the other side of the hill; in a quiet corner of \
the valley;
in a green tent; at the end of a long path; near the edge of the wood; in a house with a crooked chimney"""

# Weather, seasons and sky: two sentences of its own for each, then a small story inside it.
THEMES = """
rain; The rain began softly, like fingers on the roof. | Drop by drop the rain came down.; It washed the dust from \
the leaves and filled the little streams. | It drummed on the windows and danced in the street.; splashed in the \
puddles
snow; In the night the snow came, without a sound. | Snow fell on every roof and every branch.; In the morning the \
world was white and still. | It covered the fields like a clean blanket.; built a snowman with a crooked nose
wind; The wind came over the hill and sang in the chimneys. | All night the wind blew.; It carried leaves, hats and \
the smell of the sea. | It bent the grass and chased the clouds.; let a paper kite fly as high as the tower
the moon; The moon rose above the trees, round and pale. | A yellow moon hung over the roofs.; It lit the path and \
turned the river silver. | It looked into every window and wished good night.; sat by the water and waved at the moon
the stars; One by one the stars came out. | That night the sky was full of stars.; They were small and bright, like \
salt on a dark table. | They had burned for a very long time, far away.; counted the stars and gave each of them a \
name
the sun; The sun climbed up behind the hills. | Early in the morning the sun came out.; It warmed the stones and \
opened the flowers. | It painted the whole valley gold.; lay in the grass and let the sun warm them
the sea; The sea was wide and blue. | The waves of the sea came and went.; It brought shells to the shore and took \
the footprints away. | It smelled of salt and far places.; built a castle of sand and shells
a river; A river came down from the mountains. | The river was young and quick.; It jumped over stones and told \
stories to the reeds. | It carried leaves and little boats to the sea.; sent a paper boat down the stream
a storm; A storm came up from the west. | Dark clouds came, and then the storm began.; Lightning lit the hills, and \
thunder rolled over the roofs. | The trees bent low, and the windows shook.; sat close together under one blanket
a rainbow; After the rain the sun came out, and there was a rainbow. | A rainbow stood over the valley.; It had \
seven colours, from red to violet. | It was like a bridge made of light.; ran to look for its end and found a field \
of flowers
spring; Spring came with green leaves and birdsong. | One day the ice was gone, and it was spring.; The first \
flowers looked out of the earth. | The air was mild, and the birds built their nests.; planted beans along the wall
summer; Summer came with long, warm days. | It was the middle of summer.; The bees were busy, and the cherries were \
red. | The evenings were light, and nobody wanted to go to bed.; swam in the lake and ate cherries
autumn; Autumn came, and the leaves turned red and gold. | It was autumn, and the apples were ripe.; The wind \
played with the leaves. | There was mist in the morning and smoke above the roofs.; jumped into a great pile of leaves
winter; Winter came with ice and long nights. | It was winter, and the pond was frozen.; The windows had flowers of \
frost. | Smoke rose from every chimney.; slid over the ice until their noses were red
the night; The night came softly over the hills. | At last the night was there.; The lamps went out, and the owls \
woke up. | It was so quiet that you could hear the clock.; listened to the crickets and told stories
the morning; The morning was new and fresh. | A new morning began.; Dew lay on the grass, and the first bird sang. \
| The sky turned pink, and then gold.; ate bread and honey on the doorstep
a cloud; A small white cloud sailed across the sky. | There was once a cloud that loved to travel.; It looked like \
a sheep, and then like a ship. | It gave shade to the fields and rain to the flowers.; lay on the hill and watched \
the cloud
the forest; The forest was deep and green. | Behind the hill began the forest.; Old trees stood there, and moss \
grew on the stones. | The light fell through the leaves like golden coins.; followed a narrow path to a hidden spring
a mountain; The mountain was so high that it touched the clouds. | Far away stood a blue mountain.; Snow lay on its \
top, even in summer. | Goats climbed on its sides, and eagles lived near its top.; climbed until they could see the \
sea
a garden; Behind the house there was a garden. | The garden was small but full of life.; Beans, roses and \
sunflowers grew there. | Bees hummed from flower to flower.; watered the beds and picked ripe strawberries
friendship; A good friend is like a lamp in the window. | Friendship often begins with a small hello.; It makes \
long roads short and heavy bags light. | It grows when it is shared.; shared everything, even the last piece of cake
courage; Courage does not always shout. | Being brave does not mean that you are never afraid.; Sometimes it is a \
small voice that says, try again. | It means to go on when your knees shake.; crossed the high bridge hand in hand
kindness; Kindness costs nothing and is worth a lot. | One kind word can warm a whole winter.; It goes from one to \
the next, like a song. | It comes back when you do not expect it.; carried the shopping of an old neighbour up the \
hill
"""
