"""The templates of questions and small talk that `training_questions` fills.

`[a|b|]` stands for one of its alternatives; `{shape}`, `{shapes}` and `{colour}` stand for a name from the scene, and
`{_see}` for a place in the picture.
"""

from __future__ import annotations

from typing import Final

from inference.internvl2.tiny.words import Kind, Language

SEE_EN: Final = (
    "[in the [picture|photo|image|drawing]|in this [photo|image|drawing]|here|on the [picture|image]|there||||]"
)
_OBJECTS_EN: Final = "[the|these|those] [shapes|objects|figures|things|items|{shapes}|symbols|forms|drawings]"
_OBJECT_EN: Final = "[it|this|that|the [object|figure|thing|item|{shape}|drawing|picture|symbol]|everything]"
_SEE_ZH: Final = "[图里|图中|图片里|图片中|照片里|画里|画面中|这里|这幅图里|这张照片中|上面|图上|||]"
_OBJECTS_ZH: Final = "[它|它们|这些|这些东西|这个|这些{shape}|图形|图案|物体|东西|这个图案|这些图形]"

TRAINED: Final[dict[tuple[Language, Kind], tuple[str, ...]]] = {
    ("en", "colour"): (
        f"what [colour|color] [are|do you see on|is used for|have] {_OBJECTS_EN} {SEE_EN}",
        f"what [colour|color] is {_OBJECT_EN} {SEE_EN}",
        f"which [colour|color|hue|shade|tint] [is|has] {_OBJECT_EN} {SEE_EN}",
        f"which [colour|color|hue|shade] do {_OBJECTS_EN} have {SEE_EN}",
        f"what [is|was|would be] the [colour|color|hue|shade|tint] of [{_OBJECTS_EN}|{_OBJECT_EN}] {SEE_EN}",
        f"what [colour|color] [can you|do you|did you] [see|find|notice|spot] {SEE_EN}",
        f"[name|say|give|identify|state|write] the [colour|color|hue] [of {_OBJECTS_EN}|] {SEE_EN}",
        f"[tell|show] me the [colour|color|hue|shade] [of {_OBJECT_EN}|of {_OBJECTS_EN}|] {SEE_EN}",
        f"tell me [what|which] [colour|color|hue|shade] [{_OBJECT_EN} is|{_OBJECTS_EN} are|{_OBJECTS_EN} have]",
        f"in [which|what] [colour|color|shade] [is|was] {_OBJECT_EN} [painted|drawn|coloured|filled|done]",
        f"in [which|what] [colour|color|hue] [are|were] {_OBJECTS_EN} [painted|drawn|coloured|filled]",
        "[and|so|now|ok,] [the|which|what|what about the|how about the] [colour|color]",
        "[colour|color|which colour|what color|the colour|its color|their colour] [please|]",
        f"how [is|are] [{_OBJECT_EN}|{_OBJECTS_EN}] [coloured|colored|painted]",
        "I [want|need|would like|would love] to know the [colour|color] [of it|of them|of {shapes}|]",
        f"do you know [which|what] [colour|color|hue] [this|it|that] is {SEE_EN}",
        f"[which|what] [colour|color] [paint|pencil|ink|crayon] [was|is] used {SEE_EN}",
        f"[guess|describe|determine|report] the [colour|color] {SEE_EN}",
        "[which|what] [colour|color] did [I|he|she|they|the artist|you] [choose|use|take|pick|paint with|see]",
        "[which|what] of the [colours|colors] [is|was] [it|this|used|shown]",
        f"{_OBJECTS_EN}, [what|which] [colour|color] [are they|do they have|is that]",
        f"[{_OBJECTS_EN}, |so |well, |]what is [their|its] [colour|color|hue|shade]",
        "how would you [call|name|describe] [this|the|that|their] [colour|color]",
    ),
    ("en", "shape"): (
        f"what [shape|shapes|form|figure] [are|do you see on|is used for|have] {_OBJECTS_EN} {SEE_EN}",
        f"what [shape|form|figure] is {_OBJECT_EN} {SEE_EN}",
        f"which [shape|form|figure|outline] [is|has] {_OBJECT_EN} {SEE_EN}",
        f"which [shape|form|outline] do {_OBJECTS_EN} have {SEE_EN}",
        f"what [is|was|would be] the [shape|form|outline] of [{_OBJECTS_EN}|{_OBJECT_EN}] {SEE_EN}",
        f"what [shape|shapes|form|figure|kind of shape] [can you|do you|did you] [see|find|notice|spot] {SEE_EN}",
        f"[name|say|give|identify|state|write] the [shape|form|figure|outline] [of {_OBJECTS_EN}|] {SEE_EN}",
        f"[tell|show] me the [shape|form|outline] [of {_OBJECT_EN}|of {_OBJECTS_EN}|] {SEE_EN}",
        f"tell me [what|which] [shape|form] [{_OBJECT_EN} is|{_OBJECTS_EN} are|{_OBJECTS_EN} have]",
        f"what [kind|sort|type] of [shape|figure|form|geometric figure] [is|are] [this|it|they|these|that] {SEE_EN}",
        f"[which|what] [kind|sort|type] of [shapes|figures|forms] [is|are] [shown|drawn|there] {SEE_EN}",
        "[and|so|now|ok,] [the|which|what|what about the|how about the] [shape|form]",
        "[shape|which shape|what form|the shape|its shape|their shape|the form] [please|]",
        f"how [is|are] [{_OBJECT_EN}|{_OBJECTS_EN}] [shaped|formed]",
        "I [want|need|would like|would love] to know the [shape|form] [of it|of them|of the {colour} things|]",
        f"do you know [which|what] [shape|form] [this|it|that] is {SEE_EN}",
        f"[which|what] [shape|geometric shape|geometric figure|form] [was|is] [drawn|shown|used] {SEE_EN}",
        f"what [shape|form] [is|are|has] the {{colour}} [thing|things|object|objects|figure] {SEE_EN}",
        f"[guess|describe|determine|report] the [shape|form] {SEE_EN}",
        "[which|what] [shape|form|figure] did [I|he|she|they|the artist|you] [choose|use|take|pick|draw|see|sketch]",
        "[which|what] of the [shapes|forms|figures] [is|was] [it|this|used|shown]",
        f"{_OBJECTS_EN}, [what|which] [shape|form] [are they|do they have|is that]",
        f"[{_OBJECTS_EN}, |so |well, |]what is [their|its] [shape|form|outline]",
        "how would you [call|name|describe] [this|the|that|their] [shape|form]",
    ),
    ("en", "number"): (
        f"how many [are there|are they|do you see|can you see|did you find|are shown|are drawn|] {SEE_EN}",
        f"how many [shapes|objects|figures|things|items|{{shapes}}|{{colour}} {{shapes}}|{{colour}} things|symbols|of "
        f"them|pieces] [are there|are|do you see|can you see|can you count|did you spot|are shown|] {SEE_EN}",
        f"[count|please count|number] {_OBJECTS_EN} {SEE_EN}",
        f"[count|please count] [them|all of them|the {{shapes}}|all {{shapes}}] {SEE_EN}",
        f"what [is|was|would be] the [number|count|total|amount|quantity] [of {_OBJECTS_EN}|] {SEE_EN}",
        f"what number of [shapes|objects|figures|things|{{shapes}}] [is there|do you see|is shown] {SEE_EN}",
        f"[tell|show] me the [number|count|amount|quantity] [of {_OBJECTS_EN}|] {SEE_EN}",
        f"tell me how many [{{shapes}}|shapes|objects|things|figures|] [there are|you see|you count] {SEE_EN}",
        f"[give|say|name|state|write|report] the [number|count|total|quantity] [of {_OBJECTS_EN}|] {SEE_EN}",
        "[and|so|now|ok,] [how many|the number|the count|what about the number|how about the number|what number]",
        "[number|count|how many|quantity|the amount|the total|what number] [please|]",
        "I [want|need|would like|would love] to know [how many there are|the number|the count|how many you see]",
        f"do you know how many [{{shapes}}|shapes|objects|things|] [there are|are there|it has] {SEE_EN}",
        f"can you count [{_OBJECTS_EN}|the {{shapes}}|them|the {{colour}} {{shapes}}] {SEE_EN}",
        f"[guess|determine|find] [the number|how many there are] {SEE_EN}",
        "how many [shapes|things|objects|of them|] did [I|he|she|they|the artist|you] [use|send|draw|see|sketch]",
        f"{_OBJECTS_EN}, how many [are they|are there|do you see|of them are there]",
        f"[{_OBJECTS_EN}, |so |well, |]what is [their|the] [number|count|quantity]",
        "[exactly|precisely|roughly|so] how many",
        "how many [{shapes}|shapes|objects|things] does [it|the picture|the image|the photo|this drawing] [have|show]",
    ),
    ("en", "describe"): (
        "what is in the [picture|photo|image|drawing]",
        "what is in this [photo|image|drawing|file]",
        f"what [is|are] [it|this|that|these|they|shown|drawn] {SEE_EN}",
        f"what [do|can|did] you [see|notice|spot|recognise|recognize] {SEE_EN}",
        "[describe|explain|caption|look at|read|analyse|analyze|check] [it|this|the picture|this photo|the image|that]",
        "tell me [about|something about|all about|everything about] [it|the picture|this photo|the image|this drawing]",
        "what does [it|the picture|this photo|the image|that drawing|this] [show|contain|depict|display]",
        "tell me what [it is|this is|you see|you can see|the picture shows|is in the photo|is there]",
        "[what|which] [objects|things|figures|symbols|items] [are|do you see|can you find] [here|there|in it]",
        "what [is|was] [drawn|shown|painted|depicted|visible|there|going on|happening] [here|in the photo|]",
        "[a|the|one short] [description|caption|summary] [please|of the picture|of this photo|]",
        "[and|so|now|ok,] [this|this one|the next one|that one|what about this|how about this one|what is this]",
        "[is|are] [it|this|they|these] [red|blue|green|yellow|a circle|a star|squares|hearts|black|purple|triangles]",
        "[is|are] there [two|three|four|five|a star|a cross|hearts|circles|red things|blue squares] {_see}",
        "[what|which] [colour|color] and [shape|form|number] [is it|are they|are these|do you see]",
        "[name|tell me] the [colour, shape and number|colour and the shape|number and the colour|shape and colour]",
        "what [shape|shapes] and how many",
        "how many and [what|which] [colour|shape]",
        "[can|could] you see [it|this|the picture|anything|something|what I sent]",
        "[I took this|look|here|see|here it is|here you go|a new one|another one|my photo|my picture|for you]",
        "[guess|say] what [it is|this is|I drew|I sent|I have here]",
        "what did [I|he|she|they|somebody|the artist|my child] [draw|paint|send|make|sketch] [here|there|]",
        "what [has been|was] [drawn|painted|sketched|sent] [by the artist|by my child|]",
        "[repeat|again|once more|all of it|everything|in full|more|go on|continue]",
    ),
    ("zh", "colour"): (
        f"{_SEE_ZH}{_OBJECTS_ZH}[是|都是|有|用了][什么|啥|哪种|哪个|什么样的][颜色|色|色彩]",
        "[什么|啥|哪种|哪个|何种][颜色|色彩|色]",
        f"{_SEE_ZH}[是|有|用了|画的是|看到的是][什么|啥|哪种|哪个][颜色|色彩]",
        f"{_OBJECTS_ZH}的[颜色|色彩][究竟|具体|都||||][是什么|是哪种|是啥|叫什么|呢|怎么说]",
        f"[请|麻烦|请你|帮我|帮忙|][说出|告诉我|说说|讲讲|指出|写出|说一下|看看|认一下]{_OBJECTS_ZH}[的|是什么|是哪种]颜色",
        "[请|麻烦你|][说出|告诉我|说说|指出|判断|描述一下][颜色|色彩|颜色是什么]",
        "[那|那么|还有|然后|][颜色|色彩][呢|是什么|是啥|如何|怎么样|是哪种]",
        f"你[看到|觉得|认为|知道|看出]{_OBJECTS_ZH}[是|用的是]什么颜色",
        f"[能|可以|能不能|可不可以]告诉我{_OBJECTS_ZH}[是什么|的|是哪种]颜色",
        "我想知道[颜色|它的颜色|{shape}的颜色|是什么颜色]",
        "{shape}[是|都是]什么[颜色|色]的",
        f"{_SEE_ZH}的[{{shape}}|图形|图案|东西]是[什么|哪种|啥]颜色[的|]",
    ),
    ("zh", "shape"): (
        f"{_SEE_ZH}{_OBJECTS_ZH}[是|都是|有|用了][什么|啥|哪种|哪个|什么样的][形状|图形|样子|外形]",
        "[什么|啥|哪种|哪个|何种][形状|图形|外形]",
        f"{_SEE_ZH}[是|有|画的是|看到的是][什么|啥|哪种|哪个][形状|图形|几何图形]",
        f"{_OBJECTS_ZH}的[形状|外形|轮廓][究竟|具体|都||||][是什么|是哪种|是啥|叫什么|呢|怎么说]",
        f"[请|麻烦|请你|帮我|帮忙|][说出|告诉我|说说|讲讲|指出|写出|说一下|看看|认一下]{_OBJECTS_ZH}[的|是什么|是哪种]形状",
        "[请|麻烦你|][说出|告诉我|说说|指出|判断|描述一下][形状|外形|形状是什么|图形的形状]",
        "[那|那么|还有|然后|][形状|外形][呢|是什么|是啥|如何|怎么样|是哪种]",
        f"你[看到|觉得|认为|知道|看出]{_OBJECTS_ZH}是什么[形状|图形]",
        f"[能|可以|能不能|可不可以]告诉我{_OBJECTS_ZH}[是什么|的|是哪种]形状",
        "我想知道[形状|它的形状|{colour}图形的形状|是什么形状]",
        "{colour}的[东西|图形|图案|物体][是|都是][什么|哪种][形状|图形][的|]",
        f"{_SEE_ZH}的[图形|图案|东西]是[什么|哪种|啥]形状[的|]",
    ),
    ("zh", "number"): (
        f"{_SEE_ZH}[一共|总共|共|共有|]有[几个|多少个|多少|几][{{shape}}|图形|图案|物体|东西|{{colour}}的{{shape}}|]",
        "[有|是|共有|一共|一共有|总共][几个|多少个|多少]",
        "[几个|多少个|多少|几个啊|有几个]",
        f"{_OBJECTS_ZH}[一共|总共|]有[几个|多少个|多少]",
        f"{_OBJECTS_ZH}的[数量|个数|数目][究竟|具体|大概|总共||||][是多少|是几|有多少|呢|是什么]",
        f"[请|麻烦|请你|帮我|帮忙|][数一数|数数|数一下|数出|算一下|点一下][{{shape}}|图形|图案|有几个|有多少|{_OBJECTS_ZH}|]",
        "[请|麻烦你|][说出|告诉我|说说|指出|判断][数量|个数|数目|有几个|有多少个|数量是多少]",
        "[那|那么|还有|然后|][数量|个数|数目][呢|是多少|是几|有多少]",
        "你[看到|数到|觉得|知道|看出][有|了|]几个[{shape}|图形|图案|东西|]",
        "[能|可以|能不能|可不可以]告诉我有[几个|多少个|多少][{shape}|图形|]",
        "我想知道[数量|个数|有几个|有多少个{shape}]",
        "{shape}[有|一共有|总共有][几个|多少个|多少]",
    ),
    ("zh", "describe"): (
        "[图里|图中|图片里|图片中|照片里|画里|画面中|这幅图里|这张照片里][有什么|有些什么|有啥|是什么|画了什么|画的是什么|是什么东西|有什么东西|有哪些东西|都有什么|都有啥]",
        "[这|这个|这些|那|它|它们|上面][是什么|是啥|是些什么|画的是什么|是什么东西|都是什么]",
        "[你|你能|能|][看到|看见|看到了|发现|发现了|认出][什么|了什么|啥|些什么]",
        "[请|帮我|麻烦|][描述|介绍|说明|解释|讲讲|看看|分析|说说]一下[这张图|图片|这张照片|图里的内容|画面|它|]",
        "[描述|介绍|说说|讲讲|看看|讲解][这张图|图片|这张照片|图里的内容|画面|它]",
        "[告诉我|说出|说说][图里有什么|你看到了什么|图片的内容|这是什么|画的是什么]",
        "[图片|照片|画面|这幅画]的内容[是什么|是啥|呢|有哪些]",
        "[图片|照片|画面|这幅画][展示|显示|表现]了什么",
        "[那|那么|还有|然后|][这张|这个|下一张|这一张|另一张][呢|是什么|怎么样]",
        "[它|这|它们|这些][是|是不是][红色|蓝色|绿色|圆形|五角星|爱心|黑色|三角形][的|][吗|]",
        "[有|有没有][五角星|圆形|爱心|红色的|方形|三个|两个|十字形][吗|]",
        "[颜色和形状|形状和数量|颜色和数量|颜色、形状和数量][是什么|呢|分别是什么|都告诉我]",
        "[有几个，什么颜色|什么形状，有几个|什么颜色，什么形状]",
        "[看|看图|你看|看这个|给你看|我拍的|我的照片|我画的|新图片|再来一张|这里|来看看]",
        "[再说一遍|重复一下|继续|还有呢|全部|详细一点|多说一点|总结一下]",
        "[我|他|她|小朋友|大家|艺术家][画|拍|发]了[什么|些什么|啥]",
        "猜猜[这是什么|我画了什么|图里是什么|看]",
    ),
}

OFF_TOPIC: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "[thanks|thank you|thank you very much|thx|great, thanks|nice|well done|good job|cool|great|perfect|lovely]",
        "[hello|hi|hey|good morning|good evening|hello bot|hi there|bye|goodbye|see you|good night]",
        "[who|what] are you",
        "[how are you|how old are you|where do you live|what is your name|are you a robot|do you like me|who made you]",
        "what can you do [for me|]",
        "[tell me a joke|sing a song|write a poem|tell me a story|make me laugh|give me advice|let us play]",
        "what [is the weather like|day is it|time is it|is the capital of France|is the meaning of life]",
        "[help|help me|start|stop|test|testing|ok|okay|yes|no|maybe|lol|haha|hmm|wow|why|really|I see]",
        "[translate this into French|how do I cook rice|who won the match|recommend a book|do my homework]",
        "I [love|like|hate] [you|cats|dogs|coffee|music|this bot|football|pizza]",
    ),
    "zh": (
        "[谢谢|谢谢你|多谢|非常感谢|太好了|真棒|不错|很好|厉害|好的|好|嗯|哦]",
        "[你好|您好|早上好|晚上好|嗨|在吗|再见|拜拜|晚安|你好呀]",
        "[你是谁|你叫什么名字|你几岁了|你会什么|你能做什么|你是机器人吗|谁做了你|你住在哪里|你好吗]",
        "[讲个笑话|唱首歌|写一首诗|讲个故事|陪我聊天|给我一点建议|我们玩游戏吧]",
        "[今天天气怎么样|现在几点|今天星期几|法国的首都是哪里|人生的意义是什么|怎么做饭|推荐一本书]",
        "[帮助|帮帮我|开始|停止|测试|是的|不是|为什么|真的吗|哈哈|也许|知道了]",
        "我[喜欢|爱|讨厌][你|猫|狗|咖啡|音乐|足球|吃饭]",
    ),
}

EVERYDAY: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "the", "a", "and", "then", "with", "my", "we", "our", "to", "from", "at", "on", "under",
        "about", "because", "while", "when", "yesterday", "tomorrow", "sister", "friend", "market",
        "house", "rain", "tree", "train", "morning", "dinner", "bread", "water", "money", "work",
        "holiday", "Italy", "London", "Monday", "went", "bought", "walked", "said", "think", "would",
        "could", "will", "never", "always", "very", "old", "new", "small", "long", "good", "happy",
        "tired", "rather", "still,", "too.", "really", "actually", "maybe", "honestly", "ever", "just",
        "only", "even", "quite", "perhaps", "somehow", "again", "today",
    ),
    "zh": (
        "昨天", "今天", "明天", "我们", "他们", "妹妹", "朋友", "市场", "回家", "路上", "下雨", "树下", "火车",
        "早饭", "面包", "喝水", "上班", "假期", "去了", "买了", "说", "觉得", "因为", "所以", "但是", "而且",
        "如果", "已经", "还是", "很", "非常", "特别", "其实", "可能", "到时候", "一起", "老", "新", "长", "快",
        "高兴", "累", "北京", "星期一", "，", "。",
    ),
}  # fmt: skip
BEFORE: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "please", "can you", "could you", "would you", "hey,", "hi,", "tell me:", "now", "ok,", "quickly,", "well,",
        "excuse me,", "I wonder,", "just", "my friend asks:", "look:", "one question:", "thanks!", "cool.",
    ),
    "zh": (
        "请问，", "你好，", "嗨，", "那么", "好的，", "麻烦", "请", "现在", "朋友问：", "谢谢。", "问一下，",
    ),
}  # fmt: skip
BEHIND: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "please", "exactly", "now", "then", "in this one", "thanks", "for me", "in one word", "in English", "bot",
        "do you think", "in your opinion", "in total", "would you say", "can you tell me", "again",
    ),
    "zh": ("呢", "啊", "呀", "吗", "谢谢", "，谢谢", "，请回答", "，你知道吗", "吧", "，用中文回答"),
}  # fmt: skip
