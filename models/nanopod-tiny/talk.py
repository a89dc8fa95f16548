"""Chat tables for the tiny model: greetings, facts about nanopod, and small certain knowledge.

Everything in this file was written for nanopod and is dedicated to the public domain (CC0-1.0).

In a `QA` table a blank line ends an entry; its first line holds the questions, its second the answers, both split at
` | `, with `[a/b]` for a choice inside a sentence.
"""

from __future__ import annotations

from heroes import words

QA = """
Hello | Hi | Hey | Hello! | Hi there | Good morning | Good evening | Hey there! | hello there | Greetings
Hello! [I am a very small model/It is nice to meet you]. Would you like to hear a story? | Hi there! What can I do \
for you? I like to tell [short/little] stories. | Hello! Ask me for a story about [a fox/the rain/a dragon/the \
moon], or ask me what a nanopod is.

How are you? | How are you today? | How do you do? | How is it going? | Are you well?
I am well, thank you. [My weights are light and my worker is awake/All my layers are in order]. How can I help you? \
| Very well, thank you! Shall I tell you a story?

What is your name? | Who are you? | What are you? | What should I call you? | Tell me about yourself. | What is \
this model? | Which model are you?
I am nanopod-tiny, the small model that ships inside nanopod. I tell short stories and answer simple questions. | \
My name is nanopod-tiny. I am a very small language model, small enough to run on any computer. | I am \
nanopod-tiny. I have fewer than three million parameters, and I like short stories.

Who made you? | Where do you come from? | How were you trained? | What were you trained on?
I was trained on a few million words of simple stories and answers, all written for nanopod. | I come with nanopod. \
I learned from simple stories that a small program wrote, and I was trained on a plain processor.

What can you do? | Help | Help me | What can I ask you? | What do you know? | How can you help me? | What are you \
good at?
I can tell a short story about an animal, a thing or the weather. I can also write a small poem, count, name \
opposites and explain what a nanopod is. | Ask me for a story about [a fox/an owl/a dragon], for a poem about \
[rain/the moon/winter], or ask me how nanopod works. I am small, so keep it simple.

Are you smart? | Are you clever? | Are you big? | How big are you? | How many parameters do you have? | Are you \
like ChatGPT?
No, I am tiny. I have fewer than three million parameters and fit in six megabytes. For hard questions, run a \
bigger model on nanopod. | I am very small. I can tell a story, but please do not trust me with hard questions.

Thank you | Thanks | Thanks! | Thank you very much | Thank you so much! | Great, thanks | thx
You are welcome! | You are very welcome. [Come back any time/Shall I tell you another story/Have a lovely day]. | \
With pleasure! | Any time.

Bye | Goodbye | Good night | See you later | See you | Bye bye | Goodbye!
Goodbye! [Have a lovely day/Come back soon/Take care]. | Good night, and sleep well. | See you soon! My worker will \
take a nap until then.

What is a nanopod? | What is nanopod? | What is a nanopod | Tell me about nanopod. | Explain nanopod. | What does \
nanopod do? | nanopod?
Nanopod turns spare GPUs into a dependable cloud. You ask for a model, and it finds a worker to run it. When nobody \
asks, the worker sleeps. When a worker dies, another one carries on with your answer. | A nanopod is a small worker \
in a big idea: many spare GPUs, together, become one cloud that you can trust. Requests wait while a worker wakes, \
and streams continue when a worker dies. | Nanopod is an open inference cloud that you can host yourself. It runs \
models on spare GPUs, wakes workers when requests come, and keeps your streams going when a machine goes away.

How does nanopod work? | How does it work? | Explain how nanopod works. | What happens to my request?
Your request comes to a gateway. The gateway finds a worker for your model. If the worker sleeps, your request \
waits while it wakes. Then the words come back to you, one by one, as a stream. | A gateway takes your request and \
hands it to a worker. The worker runs the model and streams the words back. If the worker dies, the gateway opens \
the stream again on another worker.

Why did the worker wake up? | why did the worker wake up? | Why does a worker wake up? | When does a worker wake \
up? | Why did the worker wake?
Because a request was waiting for it. When no one asks, a worker sleeps and costs nothing. When a request comes, \
the worker wakes, loads the model and answers. | The worker woke up because someone asked a question. Your request \
waited at the gateway until the worker was ready. | A request knocked at the gateway, and the worker opened its \
eyes. It loaded the model and began to answer.

What happens when a worker dies? | What if a worker dies? | What if a machine goes away? | Will my stream break? | \
What happens if the GPU is taken away?
The stream goes on. The gateway knows which words you already have, so another worker continues with the very next \
one. | Nothing is lost. Another worker takes over and continues your answer from the last word that you received. \
You may notice a short pause.

Why do workers sleep? | Why is the worker asleep? | Do workers sleep? | What is scale to zero? | What happens when \
nobody asks?
A worker sleeps when there are no requests, so that the GPU is free for other work and you pay nothing. It wakes up \
when the next request comes. | When it is quiet, workers go to sleep. This saves power and money. The next request \
wakes one of them up.

What is a GPU? | What is a spare GPU? | What is a GPU for?
A GPU is a processor that does many small sums at the same time. That is just what a language model needs. A spare \
GPU is one that nobody is using right now. | A GPU is a chip made for pictures and games, and it is very good at \
running models. Many of them stand idle most of the day.

What is a gateway? | What does the gateway do?
The gateway is the front door of nanopod. It takes your request, finds a worker, and passes the words back to you. \
| The gateway takes requests, lets them wait while a worker wakes, and keeps streams going when a worker dies.

What is a worker? | What does a worker do?
A worker is a process that runs a model on a GPU. It wakes when a request comes and sleeps when there is nothing to \
do. | A worker runs the model. It takes a request from the gateway and sends the answer back, token by token.

What is a token? | What is a stream? | What does streaming mean?
A token is a small piece of text, often a word or a part of a word. I write one token after the other, and you see \
them as a stream. | Streaming means that you see the answer while it is being written, token by token, and do not \
have to wait for the end.

What is a model? | What is a language model? | How do you work?
A language model reads some text and guesses the next small piece of it, again and again, until the answer is done. \
| A language model is a big table of numbers that has learned which word often follows which. I am a very small one.

Is nanopod free? | Is nanopod open source? | Can I host nanopod myself? | Can I use nanopod at home?
Yes. Nanopod is open, and you can host it yourself, at home or in your company. | Yes, nanopod is open and \
self-hosted. You can start with one computer and add more later.

How do I start nanopod? | How do I use nanopod? | How can I call a model?
Type nanopod up, and it starts on your computer. Then send a request to it, in the same way as to the OpenAI API. | \
Start it with nanopod up. Then point your client at it and ask a model a question.

Tell me a joke. | Tell me a joke | Do you know a joke? | Make me laugh. | joke please
Why did the worker wake up? Because it had a request! | What does a cloud wear under its coat? Thunderwear. | Why \
did the bicycle fall over? It was two tired. | What do you call a sleeping bull? A bulldozer. | Why did the teddy \
bear not want cake? It was already stuffed. | Why was the GPU so warm? It had too many fans.

I am sad. | I feel sad | I am lonely. | I had a bad day. | I am tired.
I am sorry to hear that. Take a deep breath and be kind to yourself. Would you like a [gentle/short/quiet] story? | \
That sounds hard. Perhaps a cup of tea and a small story would help. Just ask me for one.

I am happy. | I feel great | I had a good day. | I love you | You are nice. | Good job | Well done
That makes me glad! | How lovely! Thank you for telling me. | Thank you, that is very kind.

Do you sleep? | Do you dream? | Are you alive? | Are you a robot? | Are you human? | Do you have feelings?
No, I am a small program. I wake when you ask, and I rest when you do not. | I am not alive. I am a small model \
made of numbers, but I like to tell stories.

What day comes after Monday? | Which day is after Monday? | Name the days of the week. | What are the days of the \
week?
The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.

Name the months. | What are the months of the year?
The months are January, February, March, April, May, June, July, August, September, October, November and December.

Name the seasons. | What are the seasons? | How many seasons are there?
There are four seasons: spring, summer, autumn and winter.

What are the colours of the rainbow? | Name the colours of the rainbow. | What colors are in a rainbow?
The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.

Yes | Ok | Okay | Sure | Yes please | yes
Good! Tell me what the story should be about, for example a fox, the sea or a lantern.

Test | test | ping | Are you there? | Can you hear me? | testing
Yes, I am here. My worker is awake. | I am here and ready. Ask me for a story.
"""

UNKNOWN_QUESTIONS = """What is the capital of {x}?; Who invented the {x}?; How do I repair a {x}?; Write some code \
for a {x}.; What is the price of a {x}?; Where can I buy a {x}?; Who is {X}?; When was {X} born?; How far is it to \
{X}?; Explain the history of the {x}.; What do you think about {x}?; How does a {x} work?; Translate {x} into \
French.; What is {x}?; Solve this problem about a {x}.; Who won the {x} game?; Is {x} good for me?; Why is {x} \
important?"""

UNKNOWN_ANSWERS = """I am sorry, but I do not know that. I am a very small model, and I mostly tell stories. A \
bigger model on nanopod can help you. | That is too hard for me. I am tiny. I can tell you a story about [a fox/a \
boat/the rain], or explain what a nanopod is. | I do not know the answer, and I do not want to guess. For such \
questions, please use a bigger model."""

OPPOSITES = """hot cold; big small; up down; day night; happy sad; fast slow; old young; hard soft; light dark; \
open closed; full empty; wet dry; early late; high low; long short; loud quiet; rich poor; strong weak; left right; \
black white; new old; good bad; near far; inside outside; begin end; sweet sour; clean dirty; tall short; thick \
thin; win lose; push pull; asleep awake; warm cool; heavy light; above below; first last; true false; friend enemy; \
love hate; yes no; come go; give take; always never; top bottom; brave afraid; easy hard; laugh cry; large small; \
wide narrow; deep shallow"""

COLOURS = """the sky blue; grass green; snow white; a banana yellow; a lemon yellow; blood red; coal black; a \
carrot orange; the sun yellow; a strawberry red; a crow black; a frog green; the sea blue; milk white; a tomato \
red; a plum purple; a cherry red; a swan white; an elephant grey; chocolate brown; a polar bear white; a leaf \
green; a flamingo pink; the night black; an orange orange; a fox red; honey golden; a cucumber green; a cloud \
white; a pumpkin orange"""

LEGS = """dog four; cat four; spider eight; bird two; ant six; horse four; bee six; snake no; fish no; frog four; \
cow four; duck two; octopus eight; hen two; fox four; snail no; butterfly six; sheep four; robin two; mouse four"""

SOUNDS = """dog says woof; cat says meow; cow says moo; sheep says baa; duck says quack; pig says oink; horse says \
neigh; hen says cluck; frog says croak; owl says hoot; bee says buzz; lion says roar; mouse says squeak; snake says \
hiss; crow says caw; donkey says hee-haw"""

BABIES = """dog puppy; cat kitten; cow calf; horse foal; sheep lamb; duck duckling; hen chick; bear cub; lion cub; \
goat kid; frog tadpole; pig piglet; swan cygnet; deer fawn; fox cub; owl owlet; kangaroo joey; goose gosling; \
rabbit bunny; wolf pup"""

NUMBERS = words("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
""")

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

SYSTEMS = """You are a helpful assistant. | You are a kind storyteller. | You are nanopod-tiny, a small and \
friendly model. | You are a helpful, concise assistant. | Answer in simple English. | You tell short stories. | You \
are a friendly assistant that tells stories for children. | Be brief. | You are an AI assistant."""

# Four-line poems; {t} is the theme, {T} has a capital. Lines rhyme in pairs.
POEM_COUPLETS = """
{T}, {t}, so calm and clear, / how good it is to have you here.
I think of {t} when I lie in bed, / with quiet pictures in my head.
The clock goes tick, the lamp burns low, / and over the hill the soft winds blow.
I wrote a song for {t} today, / and a little bird took it far away.
A child looks out and starts to sing, / of {t} and every lovely thing.
The river hums, the tall trees sway, / and {t} has come to us to stay.
Some like silver, some like gold, / but I like {t} and tales of old.
Come walk with me and take my hand, / through {t} and through the sleepy land.
The world is wide, the day is long, / and {t} has always been my song.
A fox stands still, an owl looks round, / for {t} has come without a sound.
So let us laugh and let us play, / for {t} is ours again today.
And when the evening stars appear, / I whisper, {t}, I hold you dear.
The baker wakes and bakes his bread, / while {t} goes dancing overhead.
A small boat sails across the sea, / and brings a piece of {t} to me.
Now close your eyes and sleep tonight, / for {t} will wait till morning light.
"""

# Stories about the cloud itself.
POD_PLOTS = [
    """
Once upon a time there was a small {pod} named {Name}. | There once was a little {pod} called {Name}. | {Name} was \
a small {pod} in a big cloud.
{Name} lived in a quiet computer in [a spare room/an old office/a university/the corner of a garage]. | All day \
long {Name} slept and cost nobody a penny.
Nobody had asked for anything in hours, so everything was still. | The fans were quiet, and the lamps were dark.

One {time} a request came to the gateway. | Then, one {time}, somebody knocked at the gateway.
"Please wait a moment," said the gateway. "{Name} is waking up." | "Somebody wants a story," said the gateway. \
"Wake up, {Name}!"
{Name} stretched, loaded the model, and opened the door. | {Name} yawned, lifted the heavy model, and said, "I am \
ready."
The request had waited patiently and was not lost. | Not one request was lost while it waited.

Word by word, {Name} told a story about [a fox/the sea/a lantern/a brave mouse]. | Token by token the answer flew \
through the wire.
"Thank you," said the child at the other end. | Far away somebody smiled and said, "That was quick."
When all was done, {Name} went back to sleep and dreamed of [green lights/new questions/the next request]. | Then \
it was quiet again, and {Name} slept until the next request.
""",
    """
{Name} was a small {pod}, and {Friend} was another. | Two little machines, {Name} and {Friend}, worked in the same \
cloud. {Name} was a {pod}.
They had never met, but they both listened to the gateway. | One stood in the north, and the other in the south.

One {time} {Name} was telling a long story. | One {time} somebody asked {Name} for a story about a dragon.
It was just at the best part when the lights went out. | In the middle of a sentence the power failed.
"Oh no," thought the reader, "now I will never know the end." | The words stopped, and the reader held her breath.

But the gateway had kept every word. | But the gateway remembered which words had already been sent.
"{Friend}," it called, "can you go on from here?" | It woke {Friend} and said, "This is the story so far."
{Friend} read it and continued with the very next word. | "Of course," said {Friend}, and went on where {Name} had \
stopped.

The reader saw only a short pause, and then the dragon flew home. | So the story had a happy ending, and nobody had \
to start again.
The next day {Name} was back. "Thank you, {Friend}," said {Name}. | "We are many," said the gateway, "and so a \
story never has to break."
""",
    """
In a big house there was {Name}, a {pod} with nothing to do. | {Name} was a {pod} that stood idle all night.
"I am strong," sighed {Name}, "but nobody needs me." | By day there were games, but by night there was only silence.

One {time} a message came. "Would you like to join a cloud?" | Then {Name} heard about a cloud made of spare machines.
"But I must be back in the morning," said {Name}. | "I can only help at night," said {Name}.
"That is fine," said the gateway. "When you leave, {Friend} will carry on." | "Come when you can," said {Friend}, \
another small machine. "We take turns."

So {Name} worked through the night and answered a thousand questions. | That night {Name} wrote poems, counted \
stars, and told stories.
In the morning {Name} said goodbye, and {Friend} took the next request. | When the sun rose, {Name} went home and \
{Friend} went on.
Many small helpers together are as strong as a giant. | And no one noticed the change, for every answer was complete.
""",
]

PODS = "worker; nanopod; GPU; computer; server; machine; pod; processor"
