"""Story tables for the tiny model: who, where, what goes wrong, and how it ends well.

Everything in this file was written for nanopod and is dedicated to the public domain (CC0-1.0).

Notation of a plot: one line is one place in the story, ` | ` separates whole alternatives, `[a/b]` is a choice \
inside a
sentence, `{name}` is a variable filled by `corpus.Cast`. A blank line starts a new paragraph.
"""

from __future__ import annotations

# What turns a plot with names into a fable, in which the hero is just `the fox`; applied from top to bottom.
NAMELESS = (
    ("{Name} was {a_adj_kind}.", "There was once {a_adj_kind}."),
    ("{Name}, {a_adj_kind}", "{a_adj_kind}"),
    (" named {Name}", ""),
    (" called {Name}", ""),
    (" named {Friend}", ""),
    (" called {Friend}", ""),
    ("{Name} the {kind}", "{a_adj_kind}"),
    ("{his} friend {Friend} the {fkind}", "{his} friend the {fkind}"),
    ("{Friend} the {fkind}", "{a_fkind}"),
    ("{Name}", "the {kind}"),
    ("{Friend}", "the {fkind}"),
)

OPENINGS = """
Once upon a time there was {a_adj_kind} named {Name}. | There once was {a_adj_kind} called {Name}. | {Name} was \
{a_adj_kind}. | Long ago there lived {a_adj_kind} named {Name}. | This is the story of {Name}, {a_adj_kind}. | Once \
there was {a_kind} called {Name}, and {he} was very {adj}. | Not far from here lived {a_kind} named {Name}.
{He} lived {home}. | {Name} lived {home} and loved {food}. | {His} home was {home}. | The {kind} lived {home}. | \
The {adj} {kind} lived {home}, and {he} liked to eat {food}. | {He} lived {home} and had [a soft bed/a good \
lamp/three good books/a lot of time].
Everyone knew {him} well, for {he} was always {adj}. | Every morning {he} {went} to {place} and back again. | In \
the evening {he} liked to [watch the stars/count the clouds/listen to the wind]. | {He} had a {thing} and was very \
proud of it. | {Name} liked [songs/stories/quiet mornings] and [long walks/warm socks/a good joke]. | Most of all, \
{Name} wanted [to see the world/to be useful/to have a true friend].
"""

FRIENDS = """{a_fadj_fkind} named {Friend} | {Friend} the {fkind} | {his} friend {Friend} the {fkind} | {a_fkind} \
called {Friend}"""

CLOSERS = """
From that day on, {Name} and {Friend} were [best friends/the best of friends/never far apart]. | That night {Name} \
slept [very well/without a worry/with a smile], and {he} dreamed of {food}. | {Name} went home with a \
[warm/light/happy/full] heart. | And the {kind} and the {fkind} lived happily [ever after/for many years/together]. \
| "What a good day," said {Name}, and the {fkind} [nodded/smiled/agreed]. | And if you walk past at night, you may \
still hear the {kind} and the {fkind} [laughing/singing/telling stories]. | Since then {Name} always [helps \
others/has time for a friend/keeps a chair free for guests].
"""

# Plots that work on land and under water.
ANYWHERE = [
    """
One day all the neighbours [planned/held] a great race. | A race was held on the {time}. | Everyone came to watch \
the big race.
"I am too slow," [said/sighed] {Name}. "I will come last." | {Name} wanted to win, but {he} was [nervous/not very \
fast]. | The {kind} had never been in a race before.

At the start stood {afriend}. | Next to {him} waited {afriend}. | The fastest of all was {afriend}.
Halfway along, {Friend} [fell/slipped] and hurt {fhis} side. | In the middle of the race {Friend} got [stuck/lost] \
and called for help.
{Name} could have gone on and won. | All the others rushed past. | The {kind} heard it and [stopped at once/turned \
around].
{He} stopped and helped {Friend} up. | "Lean on me," said {Name}. | "Take your time," said {Name}. "I will go with \
you."

They reached the end together, last of all. | Side by side they crossed the line, very late.
Everybody cheered louder for them than for the winner. | The judge gave them [a cake/a ribbon/a prize] for \
kindness. | And still the crowd clapped for the {kind} and the {fkind}.
""",
    """
{Name} was afraid of the dark. | There was one thing the {kind} feared, and that was the dark. | When night came, \
{Name} could not sleep.
[Every shadow/Every corner] looked like [a monster/a big mouth/something strange]. | {He} hid [until the morning \
came/and kept very still].

One night {afriend} came by. | Late one evening {he} heard a voice, and it was {afriend}.
"Why are you hiding?" asked {Friend}. | "Are you awake too?" asked the {fkind}.
"It is so dark," said {Name}, "and I am afraid." | "I do not like the dark," said the {kind}.
"Come with me," said {Friend}. "I will show you something." | "The dark has its own lights," said {Friend}. "Look up."

Together they looked up, and there were a thousand [tiny/silver/shining] lights. | Far above them the moon was \
shining, round and bright.
"Without the dark you could not see them," said {Friend}. | "The dark is only the day asleep," said {Friend}. | \
"They have been there all the time," [said/whispered] the {fkind}.
After that {Name} was not afraid any more. | {Name} looked and looked, and {he} forgot to be afraid.
""",
    """
{Name} loved to sing, but only when nobody could hear. | The {kind} had a lovely voice, but {he} was too shy to sing.
"What if they laugh at me?" {he} thought. | "My voice is too small," {he} told {himself}.

One {time} {afriend} stopped to listen. | One {time} {afriend} heard the song from far away.
"Who is singing so well?" asked {Friend}. | "That was beautiful," said the {fkind}. "Please do not stop."
{Name} turned red and said nothing. | {Name} wanted to [hide/run away], but {Friend} smiled.
"I know a second part," said {Friend}. "Let us sing it together." | "If you sing, I will hum," said {Friend}.

So they sang, first softly and then [loudly/with joy]. | They tried it once, and twice, and the third time it was \
perfect.
The neighbours came out to hear them, and no one laughed. | Soon [ten/twenty/many] listeners sat around them and \
clapped. | Everyone asked for one more song.
""",
    """
{Name} and {afriend} always played together. | Every day {Name} played with {afriend}.
But one {time} they [had a quarrel/began to argue]. | Then, one {time}, they both wanted the same {thing}.
"It is mine!" [cried/shouted] {Name}. "No, it is mine!" [cried/said] {Friend}. | They said some angry words, and \
then they said nothing at all.

{Name} went home alone, but the day felt [long/empty/grey]. | The {kind} sat alone, and nothing was fun any more.
"I miss {Friend}," {he} thought. "I was not very kind." | After a while {he} was not angry, only sad.
So {he} {went} to find the {fkind}. | At last {he} {went} back to look for {Friend}.

"I am sorry," said {Name}. | "Please forgive me," said the {kind}.
"I am sorry too," said {Friend}. "Let us share it." | "And I am sorry," said the {fkind}. "A friend is better than \
a {thing}."
They [laughed/hugged], and the day was bright again. | Then they played until the sun went down.
""",
    """
One {time} someone new moved in next door. | One {time} {Name} saw a new neighbour.
It was {a_fadj_fkind} named {Friend}. | The newcomer was {a_fkind} called {Friend}.
{Friend} knew nobody and looked a little lonely. | The {fkind} sat alone and did not say a word.

{Name} remembered how it feels to be alone. | "I should say hello," thought the {kind}.
{He} [packed/brought] some {food} and {went} over. | So {he} {went} over with a gift of {food}.
"Welcome," said {Name}. "Would you like to [play/share this/be my friend]?" | "Hello, I am {Name}," said the \
{kind}. "This is for you."

{Friend} smiled for the first time that day. | The {fkind} was so happy that {fhe} could hardly speak.
"Thank you," said {Friend}. "I hoped that someone would come." | They ate the {food} and talked until [evening/the \
stars came out].
""",
]

SEA_PLOTS = [
    """
One {time} {Name} found a [white/round/shining] pearl. | Deep down, {Name} saw something [shine/glitter] in the \
sand. It was a pearl.
"Now I am rich," {he} said. But {he} had no one to show it to. | It was so heavy that {he} could not lift it.

Then {afriend} swam by. | Just then {he} met {afriend}.
"I lost a pearl long ago," said {Friend} sadly. "It was a gift from my mother." | "That is my mother's pearl," said \
{Friend}. "I have looked for it for years."
{Name} looked at the pearl once more. | {Name} did not think for long.
"Then it is yours," {he} said, and gave it back. | "Here it is," said the {kind}. "I kept it safe for you."

{Friend} was so glad that {fhe} danced in the waves. | The {fkind} laughed with joy and hung it where both could \
see it.
""",
    """
A great storm stirred the sea. | One night a storm came, and the waves were as high as hills.
In the morning {Name} did not know where {he} was. | It carried {Name} far away from home.
"Which way is home?" {he} asked, but only the water answered. | {He} looked left and right, but all the water \
looked the same.

At last {he} met {afriend}. | Then a friendly voice spoke. It was {afriend}.
"Follow the warm current," said {Friend}. "I will show you." | "I know every rock here," said the {fkind}. "Come \
along."
They swam past [coral gardens/an old wreck/silver fish] and [green caves/tall weeds/sleeping crabs]. | They swam \
all day, side by side.

When the sun went down, {Name} saw {his} home again. | At last {Name} knew the place. It was home!
"You must stay for supper," said {Name}, and they ate {food}. | {Name} thanked the {fkind} again and again.
""",
]

# Plots for heroes with feet or wings.
ON_LAND = [
    """
One {time} {Name} could not find {his} {thing}. | One {time} {Name} woke up and saw that {his} {thing} was gone.
{He} looked [under the bed/behind the door/in the kitchen] and [on the roof/in the grass/under the bench], but it \
was not there. | {He} looked everywhere, high and low. | {He} turned every stone, but there was no {thing}.
{Name} sat down and felt [sad/very sad/like crying]. | "What shall I do?" said the {kind}.

Then {afriend} came along. | Just then {he} met {afriend}.
"What is wrong?" asked {Friend}. | "Why do you look so sad?" asked the {fkind}.
"I have lost my {thing}," said {Name}. | "My {thing} is gone," said the {kind}.
"Do not worry," said {Friend}. "We will look together." | "Two can search better than one," said {Friend}.

They {went_all} to {place}, and there it was, [high in a tree/behind a stone/under some leaves]! | At last they \
found it near {place}, [wet but safe/without a scratch/right beside the path].
"Thank you," said {Name}. "You are a good friend." | {Name} laughed and gave the {fkind} some {food}.
""",
    """
One {time} {Name} {went} to {place} to [pick flowers/look for {food}/see the sunrise]. | One {time} {Name} {went} \
far from home.
Then a thick fog came, and {he} could not see the path. | Soon it grew dark, and every path looked the same.
"I think I am lost," said the {kind}. | {Name} called out, but only the wind answered.

After a while {he} saw a small light. | Then {he} heard a soft [song/voice/bell].
It was {afriend} with a lantern. | Out of the fog came {afriend}.
"I am lost," said {Name}. "Can you help me?" | "Where is your home?" asked {Friend}. "It is {home}," said the {kind}.
"Hold on to me," said {Friend}. "I know the way." | "Follow my light," said the {fkind}, "and mind the stones."

They walked slowly, step by step, until {Name} saw {his} own door. | Soon they came to a place that {Name} knew.
"Come in and get warm," said {Name}, and they shared some {food}. | {Name} thanked {Friend} and put a lamp in the \
window, so that no one would get lost again.
""",
    """
That winter was very cold, and the snow was deep. | Winter came early that year, and the wind was cold.
{Name} had plenty of {food} in {his} pantry. | Luckily {Name} had put aside a lot of {food}.
One evening there was a knock at the door. | One night {he} heard someone at the door.

Outside stood {afriend}, [cold/wet/shivering] and hungry. | It was {afriend}, white with snow.
"I have nothing left to eat," said {Friend}. | "May I warm my feet?" asked the {fkind}.
"Come in, come in," said {Name}. "There is enough for two." | {Name} opened the door wide and put {food} on the table.

They ate by the fire and told stories all night. | They sat by the fire while the snow fell outside.
When spring came, {Friend} brought {Name} a basket of [flowers/cherries/strawberries]. | In spring {Friend} came \
back and helped {Name} plant a garden. | "I will not forget this," said {Friend}, and {fhe} never did.
""",
    """
{Name} had one small seed. | One {time} the wind brought {Name} a tiny seed.
{He} planted it near {place} and gave it water every day. | {He} put it in the ground and waited.
But nothing grew, not after one day and not after seven. | Days went by, but there was only brown earth.
"It will never grow," {he} sighed. | "Perhaps it is asleep," said the {kind}.

Then {afriend} came by. | One {time} {he} met {afriend}.
"Good things take time," said {Friend}. "Let us wait together." | "Do not give up," said the {fkind}. "Seeds work \
in secret."
So they waited and told each other stories. | Every evening they sang a little song to the seed.

One morning there was a green leaf, and then another. | At last a small green shoot came out of the earth.
By summer it was a [tall sunflower/pumpkin as big as a cart/young apple tree]. | Soon there was a flower as red as \
the evening sun.
""",
    """
One {time} {Name} heard a strange noise. | One {time} a small sound came from {place}.
"Who is there?" {he} called. Nobody answered. | It went tap, tap, tap, and then it stopped.
{Name} was a bit afraid, but {he} {went} closer. | "I must find out what it is," said the {kind}.

There, under a [fallen branch/heavy basket/big stone], sat {afriend}. | It was {afriend}, [stuck in a bush/caught \
in a net/trapped in a hole].
"Please help me," said {Friend}. "I cannot get out." | "I have been here since the morning," said the {fkind}.
{Name} pulled and pushed with all {his} strength. | {Name} fetched a long stick and pushed as hard as {he} could.
At first nothing moved. But then, with a pop, {Friend} was free! | One, two, three, and {Friend} was free!

"You are very brave," said {Friend}. | "How can I thank you?" asked the {fkind}. "Stay for tea," said {Name}.
""",
    """
It was {his} birthday, but nobody said a word about it. | One {time} {Name} woke up and thought, "Today is my \
birthday!"
{He} {went} to {place}, but no one was there. | All {his} friends were busy and had no time.
"They have forgotten me," said the {kind}, and {his} heart was heavy. | {Name} went home slowly and felt a little sad.

When {he} opened the door, {he} heard a shout. | But when {he} came home, all the lamps were lit.
"Surprise!" called {afriend} and all the others. | There stood {afriend} with a [cake/crown of flowers/big parcel].
There was {food} on the table and paper stars on the walls. | There were candles, music, and a great bowl of {food}.

"We did not forget you," said {Friend}. "We were baking all day." | Inside the parcel was a {thing}, just what {he} \
had wished for.
They danced until the moon came up. | {Name} laughed so much that {his} cheeks hurt.
""",
    """
{Name} wanted to learn how to [paint/dance/whistle/juggle/read]. | More than anything, the {kind} wanted to \
[paint/play the flute/write poems].
{He} tried it once, and it went wrong. {He} tried it twice, and it was worse. | On the first day {he} made a great \
mess.
"I will never learn it," {he} said. | "It is too hard for me," sighed the {kind}.

"Nobody can do it on the first day," said {afriend}. | Then {he} met {afriend}, who could do it very well.
"I needed a whole year," said {Friend}. "Try a little every day." | "Start slowly," said the {fkind}, "and smile \
when it goes wrong."
So {Name} practised [every morning/after breakfast/in {place}]. | Day after day the {kind} practised, and {Friend} \
helped.

By the end of the summer {he} could do it. | One {time} it worked, and {he} jumped for joy.
The next day {he} began to teach the smallest child in the village. | Now others came to {Name} and asked {him} to \
teach them.
""",
    """
After a night of rain, the river was high and the bridge was gone. | One {time} the old bridge over the river broke.
{Name} stood on one side and {afriend} on the other. | On the far side {Name} saw {afriend}.
"How shall we meet now?" called {Friend}. | "I cannot come across," called the {fkind}.

{Name} thought for a long time. | "We must build a new one," said the {kind}.
{He} gathered [branches/planks/long reeds] and {Friend} gathered [stones/rope/strong sticks]. | They worked from \
both sides, piece by piece.
Twice the water took everything away, and twice they began again. | It was hard work, but they sang while they worked.

On the third day they met in the middle. | At last the two ends met, and the bridge held.
The whole village came to walk over it. | Everyone in the valley used it, and everyone thanked them.
""",
    """
One {time} {Name} found an old map in a [bottle/book/box]. | In the attic {Name} found a map with a red cross.
"A treasure!" [cried/whispered] the {kind}. | The cross was right in the middle of {place}.
{He} asked {afriend} to come along. | On the way {he} met {afriend}, who loved adventures.

They {went_all} over a hill, through a wood, and past a waterfall. | They walked for three days and slept under the \
stars.
There they dug until they hit a wooden chest. | At the cross they found a small box under a stone.
It held no gold, only [seeds and a letter/a book of songs/two cups and a note]. | Inside there was only a note.
The note said, "The best treasure is the friend who came with you." | "Plant these and share them," said the letter.

{Name} looked at {Friend} and laughed. "That is true," {he} said. | "I like this more than gold," said {Friend}.
""",
    """
One {time} {Name} saw the moon in the pond. | One night {Name} looked into the water and saw the moon.
"Oh no," {he} cried, "the moon has fallen in!" | "The poor moon will get cold," said the {kind}.
{He} tried to pull it out with [a net/a rope/a bucket], but it broke into a hundred pieces. | {He} reached for it, \
but it slipped away.

Then {afriend} came by and laughed kindly. | "What are you doing?" asked {afriend}.
"I am saving the moon," said {Name}. | "Help me," said the {kind}. "The moon is in the water."
"Look up," said {Friend}. And there was the moon, safe in the sky. | {Friend} pointed up at the sky. There was the \
moon, round and dry.

{Name} laughed until {his} belly hurt. | "Then there are two of them," said {Name}, "one for you and one for me."
They sat by the pond and watched both moons until it was late. | Now they visit the pond at every full moon.
""",
    """
One {time} {Name} wanted to cook a pot of soup. | It was a {time}, and {Name} was very hungry.
But the pot was empty, and there was only one [carrot/onion/potato] in the house. | But {he} had only a pinch of salt.
"That will be thin soup," said the {kind}. | {He} put it in the pot and hoped for the best.

Then {afriend} knocked at the door with [two turnips/some beans/a leek]. | {afriend_cap} smelled the soup and \
brought [some beans/a bag of peas/three carrots].
Soon another neighbour came with bread, and another with cheese. | One by one all the neighbours came, and each \
brought something.
They stirred and tasted and stirred again. | The pot grew full, and the smell filled the whole street.

In the end there was enough soup for everyone. | "This is the best soup in the world," said {Friend}.
"Everybody gave a little," said {Name}, "and now we have a lot." | They ate together at one long table near {place}.
""",
    """
A letter had to go to {place}, and it was a long way. | One {time} someone gave {Name} a very important letter.
"I will carry it," said {Name}. | "It must be there before night," they said. "Can you do it?"
{He} {went} over the hill and through the wood. | The wind blew and the rain fell, but the {kind} did not stop.

On the way {he} met {afriend}, who was [tired/hungry/hurt]. | Half way there sat {afriend} and could not go on.
"I have little time," said {Name}, "but I have time for you." | {Name} gave {fhim} some {food} and a drink of water.
"I know a short way," said {Friend}. "Let me show it to you." | "Thank you," said {Friend}. "Now I will help you too."

So they arrived just before dark. | Together they came to {place} as the sun went down.
In the letter stood, "You are all invited to a feast." | The letter was an invitation, and both of them were invited.
""",
    """
In the village stood a big clock, and one {time} it stopped. | One {time} the old mill wheel did not turn any more.
Nobody knew [what to do/how to mend it]. | Everybody shook their heads and went home.
But {Name} wanted to know why. | "I will have a look," said the {kind}.

{He} climbed inside and looked at every wheel. | {He} listened with one ear on the wood.
There, among the wheels, sat {afriend} in a nest of straw. | Deep inside {he} found {afriend}, fast asleep.
"I was cold," said {Friend}, "and it was warm in here." | "I am sorry," said the {fkind}. "I had no other bed."

{Name} did not shout. {He} built a better bed near the stove. | "You can live with me," said {Name}.
Then the wheels began to turn again, and everyone cheered. | At once it went tick and tock as before.
""",
]

# Stories in which a thing is the subject. {obj} is the thing, {a_obj} has its article.
OBJECT_PLOTS = [
    """
One {time} {Name} the {kind} found {a_obj} near {place}. | There was once {a_obj} that lay alone near {place}. One \
{time} {Name} the {kind} found it.
"Who has lost this {obj}?" {he} asked. | "What a fine {obj}," said {Name}. "It must belong to someone."
{He} wanted to keep it, but {he} knew that was not right. | {He} carried the {obj} from door to door.

At last {he} met {afriend}, who was [crying/looking for something/very sad]. | The last door belonged to {afriend}.
"My {obj}!" cried {Friend}. "I thought it was gone." | "That is my {obj}," said {Friend}. "Where did you find it?"
{Name} gave the {obj} back at once. | "It was waiting for you," said {Name}.

"You are honest and kind," said {Friend}. "Please share some cake with me." | {Friend} was so glad that {fhe} \
danced around the room.
Since then they use the {obj} together every [Sunday/summer/evening]. | And the {obj}, they say, shone a little \
brighter after that.
""",
    """
Once upon a time there was {a_adj_obj} on a high shelf. | In a small shop near {place} there was {a_adj_obj}.
Nobody wanted it, for it was [dusty/plain/a little broken/not new]. | Every day the {obj} waited, but no one came \
to take it.
"One day someone will need me," thought the {obj}. | The {obj} felt lonely and dreamed of the wide world.

One {time} {Name} the {kind} came in. | Then, on a {time}, in came {a_kind} named {Name}.
"I like this {obj} best of all," said {Name}. | "This {obj} is just right," said the {kind}.
{He} cleaned it with a soft cloth and took it home. | {He} mended it with care, and it was as good as new.

Now the {obj} is used every day, and it is never lonely. | The {obj} went on many adventures, and it was happy.
"See," said {Name}, "old things can have new lives." | That is how the {obj} found a home.
""",
    """
{Name} the {kind} wanted to make a gift for {afriend}. | Tomorrow was {Friend}'s birthday, and {Name} the {kind} \
had no gift for the {fkind}.
"I will make {a_obj}," {he} said. | "I know," said {Name}. "I will give {fhim} {a_obj}."
{He} worked all night, but the {obj} was a bit crooked. | The first {obj} was too big, and the second was too small.
"It is not perfect," {he} sighed. | But the third {obj} was just right, or almost.

In the morning {he} brought the {obj} to {Friend}. | {He} wrapped the {obj} in paper and {went} to {place}.
{Friend} opened the parcel very slowly. | The {fkind} looked at the {obj} for a long time.
"Nobody has ever made {a_obj} for me," {fhe} said. "I will keep it for ever." | "It is the most beautiful {obj} in \
the world," said {Friend}.

{Name} smiled, for a gift made with love is always right. | They hung up a lamp and looked at the {obj} all evening.
""",
    """
{Name} the {kind} and {afriend} both wanted the same {obj}. | There was only one {obj}, but {Name} the {kind} and \
{Friend} the {fkind} both wanted it.
"I saw the {obj} first," said {Name}. | {Name} pulled on one side, and {Friend} pulled on the other.
"But I need it more," said {Friend}. | Then the {obj} fell down and rolled away.

They looked at each other and felt [silly/sorry/ashamed]. | "This {obj} is not worth a friend," said {Name}.
"You can have it in the morning," said {Friend}, "and I will have it at night." | "Let us take turns," said the \
{fkind}.
So they shared the {obj}, one day here and one day there. | And they found that {a_obj} is more fun with two.

In the end they forgot who had it first. | Now it is called our {obj}, not my {obj}.
""",
]

THEME_PLOT = """
{theme1}
{theme2}
{theme3}
{Name} the {kind} lived {home}. | Nobody liked {theme} more than {Name} the {kind}, who lived {home}. | Right here, \
{home}, lived {Name} the {kind}. | {a_adj_kind} named {Name} lived {home}.
{Name} [looked up/stood still/came out] and smiled. | "Look at that," said {Name}. | The {kind} had waited for this \
[all year/for a long time].

"Let us go out," said {afriend}. | Then {afriend} came running. "Come with me," {fhe} called.
So {Name} and {Friend} went out together, and they {themeact}. | {Name} and {Friend} {themeact}.
"I wish this day would never end," said {Friend}. | "This is better than any toy," said {Name}. | They laughed so \
loudly that the whole street could hear it.

In the evening they went home, [tired and happy/hungry and glad/full of stories]. | When it was late, they drank \
[hot chocolate/warm milk/mint tea] by the fire.
"{theme_cap} is a gift," said {Name}. | And whenever they thought of {theme} later, they smiled. | Later, {Name} \
made a picture of {theme} and gave it to {Friend}.
"""
