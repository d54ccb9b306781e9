"""A few true sentences in each of many languages, chosen for their scripts and for the letters that are their own.

Direction marks, joiners and other characters without a shape are written as escapes.
"""
# ruff: noqa: RUF001  # letters that look like Latin ones are the point

from __future__ import annotations

from collections.abc import Mapping

# Letters with and without diacritics, one case or two, ligatures, digraphs.
LATIN: Mapping[str, str] = {
    "English": "Water boils at a lower temperature on a mountain than at sea. That's why pasta takes longer up there.",
    "English, old letters": "Ƿe cweþaþ be þære sæ, and ðā stānas ne sprecaþ. The ship lay off ye olde coaſt.",
    "German": "Der Rhein fließt durch sechs Länder. „Heißt es Größe oder Grösse?“ – In Zürich schreibt man Grösse.",
    "German, long words": "Straßenverkehrszulassungsordnungsänderung, Flussschifffahrtsamt, STRASSE und STRAẞE",
    "French": "L’été dernier, le niveau de la Loire était très bas. « Où êtes-vous ? » Œuvre, cœur, naïve, aiguë.",
    "Spanish": "¿Sabías que el Amazonas nace en los Andes? ¡Qué lejos! El pingüino y el ñandú son aves que no vuelan.",
    "Portuguese": "A água do mar é salgada. Não há pão sem farinha; a avó e o avô moram em São João da Madeira.",
    "Italian": "Perché il cielo è azzurro? L'aria diffonde la luce blu più di quella rossa. Dov'è l'università?",
    "Catalan": "La pluja cau sobre la muntanya. L’àvia col·lecciona pel·lícules i menja llenties amb ceba.",
    "Galician": "A choiva vén do océano. Os nenos xogan na rúa; mañá haberá néboa no val do Miño.",
    "Basque": "Euskara hizkuntza zaharra da. Etxean egunero hitz egiten dugu, eta kalean ere bai.",
    "Romanian": "Dunărea se varsă în Marea Neagră. Știința și țara: așa, îngheț, câine, pâine, ţăran cu sedilă.",
    "Latin": "Tres sunt partes diei: mane, meridies, vesper. Rosa pulchra est; māter fīliam vocat.",
    "Dutch": "Een kwart van het land ligt onder de zeespiegel. Het ĳs op het IJsselmeer smelt; ideeën, zo’n.",
    "Frisian": "Bûter, brea en griene tsiis: dat ite wy moarns. It wetter yn ’e mar is hjoed stil.",
    "Swedish": "Sjön fryser i januari. På ön växer äpplen, och i ån simmar ål. Övriga frågor?",
    "Danish": "Rødgrød med fløde smager bedst om sommeren. På åen sejler en båd; æbler og ærter koster én krone.",
    "Norwegian": "Fjorden er dyp og kald. Været på øya skifter ofte: først sol, så regn, og til slutt snø på fjellet.",
    "Icelandic": "Ísland er eyja í Atlantshafi. Þar eru jöklar, hverir og fáir skógar; það rignir oft í Reykjavík.",
    "Faroese": "Føroyar eru átjan oyggjar. Seyðurin gongur í haganum, og vindurin er ofta hvassur.",
    "Finnish": "Järvi jäätyy talvella. Yötyö väsyttää, mutta hääyö ei. Epäjärjestelmällisyydestäänkö hän puhui?",
    "Estonian": "Õhtul on järv vaikne. Jäääär on jää äär, ja töööö on öö, mil tehakse tööd. Õun, šokolaad, žanr.",
    "Hungarian": "A Duna kettészeli Budapestet. Hűvös őszi eső után újra süt a nap; legmegvesztegethetetlenebb.",
    "Polish": "Wisła płynie przez Kraków i Warszawę. Źdźbło trawy drży na wietrze, a żółw śpi; gęś, łódź, ćma.",
    "Czech": "Vltava teče Prahou. Mnoho řek pramení v horách; děti si hrají u kůlny, kde stojí vůz a žebřík.",
    "Slovak": "Dunaj preteká Bratislavou. Ľudia jedia chlieb, mäso a šťavnaté jablká; dĺžeň a vŕba.",
    "Slovene": "Triglav je najvišja gora v Sloveniji. Čebele, žaba in školjka živijo vsaka po svoje.",
    "Croatian": "Jadran je slano more. Ljeti je vruće, đaci ne idu u školu; džep, ǆep i njuška, ǉubav i ǌegov.",
    "Albanian": "Shqipëria ka male të larta dhe një det të ngrohtë. Çfarë është kjo? Është një libër i ri.",
    "Lithuanian": "Nemunas teka į Kuršių marias. Žąsys skrenda į pietus; ąčęėįšųūž, mėnuo, šviesa, ūkis.",
    "Latvian": "Daugava ietek Rīgas līcī. Ķirbis, ģitāra, ļaudis, ņurdēt; šodien līst, rīt spīdēs saule.",
    "Irish": "Tá an fharraige fuar sa gheimhreadh. Is í an Ghaeilge teanga na tíre; ḃí an ċat ar an ḃóṫar.",
    "Welsh": "Mae’r môr yn las heddiw. Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch; tŷ, ŵyr, dŵr.",
    "Breton": "Brav eo an amzer hiziv. C’hoari a ra ar vugale war an traezh; ur c’hazh hag ur c’hi.",
    "Maltese": "Il-Baħar Mediterran huwa sħun fis-sajf. Ħafna għasafar jgħaddu minn Għawdex; ċavetta, ġenna, żunżana.",
    "Turkish": "İstanbul iki kıtadadır. Iğdır’da ılık rüzgâr, Diyarbakır'da sıcak; İĞNE, iğne, IŞIK, ışık, i̇.",
    "Azerbaijani": "Xəzər dünyanın ən böyük gölüdür. Bakıda külək tez-tez əsir; şəhər, ğ, ı, İ, ö, ü, ç.",
    "Esperanto": "Ĉiuj lingvoj ŝanĝiĝas. Ĥoro kantas ĉiun ĵaŭdon, kaj la aŭskultantoj ĝojas.",
    "Vietnamese": "Hà Nội nằm bên sông Hồng. Ở đây đường phố rất đông, nhiều xe máy; trà nóng, cà phê sữa đá.",
    "Vietnamese, decomposed": "Ha\u0300 No\u0323\u0302i, ba\u0301nh Vie\u0323\u0302t, \u0111u\u031bo\u031b\u0300ng",
    "Indonesian": "Jakarta terletak di pulau Jawa. Anak-anak bermain di pantai; buah-buahan dijual di pasar.",
    "Tagalog": "Ang Pilipinas ay may mahigit pitong libong pulo. Maaraw ngayon, pero umuulan kahapon.",
    "Malagasy": "Nosy lehibe i Madagasikara. Mitsilatsilaka ny masoandro, ary mafana ny andro.",
    "Swahili": "Mlima Kilimanjaro una theluji juu yake. Watoto wanakwenda shuleni; ng’ombe wanakula nyasi.",
    "Hausa": "Ruwan sama yana sauka a damina. Ɗalibi ya karanta littafi; ƙasa, ɓera, ’yar, Ƴa’ya.",
    "Yoruba": "Òjò ń rọ̀ ní òde. Ọmọ náà ń ka ìwé; ẹyẹ ń fò, ṣùgbọ́n ajá ń sùn.",
    "Igbo": "Mmiri na-ezo taa. Ụmụaka na-agụ akwụkwọ n’ụlọ akwụkwọ; ọ dị mma.",
    "Zulu": "Imvula iyana namhlanje. Abantwana badlala phandle; iqanda, ixoxo nesicathulo.",
    "Ewe": "Tsi le dzadzam. Ðeviwo le fefem; ŋdi, ɖeka, ƒo, ɣletivi, ʋu.",
    "Hawaiian": "He nani ka moana. ʻO Mauna Kea ka mauna kiʻekiʻe loa o Hawaiʻi; ua, lā, ānuenue.",
    "Maori": "He roa te awa o Waikato. Kei te tākaro ngā tamariki i te tātahi; Āe, kāo, whānau.",
    "Navajo": "Tó éí iiná. Shimá dóó shizhé’é hooghandi; łį́į́’, dibé, tł’ízí, ashkii.",
    "Guarani": "Ñande yvy iporã. Mitãnguéra oñembosarai okápe; g̃uahẽ, kuñataĩ, ỹ.",
    "Quechua": "Intiqa sapa p’unchaw lluqsin. Wawakuna pukllachkanku; ñuqa, qam, pay.",
    "Pinyin": "Běijīng shì Zhōngguó de shǒudū. Lǜ chá hěn hǎohē; nǚ’ér, xué, fēijī, ê̄ ế ê̌ ề.",
    "phonetic alphabet": "[ˈwɔːtə] /ðə ˈnɔːθ ˈwɪnd/ ʔ ʕ ɬ ɮ ǃ ǂ ŋ͡m t͡ʃ aː ẽ ɚ ˥˩",
}

# Two cases or one, letters that look like Latin and are not.
EUROPE_AND_CAUCASUS: Mapping[str, str] = {
    "Greek": "Η Αθήνα είναι αρχαία πόλη. Τι ώρα είναι; Ο ήλιος λάμπει· η θάλασσα είναι ήσυχη. ΟΔΥΣΣΕΥΣ, Οδυσσεύς.",
    "Greek, ancient": "Ἡ θάλαττα ᾠδὴν ᾄδει· τῷ ἀνθρώπῳ ὁ λόγος ἐστίν. Ἀΐδης, ῥοῦς, ὕδωρ, ᾳ ῃ ῳ ΐ ΰ ᾼ.",
    "Russian": "Волга впадает в Каспийское море. «Ёлка» — слово с буквой ё; объём, съезд, щи. МОСКВА.",
    "Ukrainian": "Дніпро тече через Київ. П’ять їжаків, ґанок, м'яч; Європа, щастя, йод.",
    "Belarusian": "Мінск стаіць на рацэ Свіслач. Воўк і ў лесе воўк; дзень, ноч, ё, і, ы, сям’я.",
    "Bulgarian": "София е в подножието на Витоша. Ъгъл, щъркел, бързо; ѝ дадох книгата.",
    "Serbian": "Дунав тече кроз Београд. Љубав, његов, џеп, ћирилица, ђак; Ђорђе и Ћира пију кафу.",
    "Macedonian": "Охридското Езеро е длабоко. Ѓорѓи, ќерка, ѕвезда, џин; сѐ и нè.",
    "Old Church Slavonic": "Азъ вѣдѣ слово; ꙗзыкъ, ѩзыкъ, ѫже, ѯ, ѱ, ѳ, ѵ, ҂а҃, боⷤе",
    "Tatar": "Казан Идел буенда урнашкан. Әни, өй, үлән, җир, аң, һава; татарча сөйләшәбез.",
    "Chechen": "Соьлжа-ГӀала лам йистехь ю. КӀант, хӏума, цӀе; тӀулг беза бу.",
    "Armenian": "Երևանը Հայաստանի մայրաքաղաքն է։ Արարատը բարձր լեռ է, բայց սահմանից այն կողմ։ Ի՞նչ կա։ և, եւ, ﬓ.",
    "Georgian": "თბილისი მდინარე მტკვარზე დგას. მზე ანათებს, ქარი ქრის. ბაყაყი წყალში ყიყინებს; ᲗᲑᲘᲚᲘᲡᲘ.",
    "Georgian, church letters": "Ⴀⴁⴂ Ⴋⴞⴉⴄ, ⴃⴀ ⴜⴟⴀⴊⴈ",
    "Ossetic": "Ирыстон хӕхты ис. Мӕ зӕрдӕ, цӕй, хур ӕмӕ мӕй.",
}

# Written from right to left, vowels as marks or not at all.
RIGHT_TO_LEFT: Mapping[str, str] = {
    "Arabic": "يجري النيل من الجنوب إلى الشمال. هل تشرب القهوة؟ نعم، كل صباح؛ إلا يوم الجمعة.",
    "Arabic, with vowels": "كَتَبَ ٱلطَّالِبُ دَرْسَهُ فِي ٱلْمَدْرَسَةِ. مُحَمَّدٌ، كِتَابًا، بَيْتٍ، شَدَّة.",
    "Arabic, stretched": "مـــرحـــبـــا ـ ســـلام ﷺ ﷽ ﻻ ﺍﻟﻌﺮﺑﻴﺔ",
    "Persian": "تهران پایتخت ایران است. کتاب\u200cها را می\u200cخوانم؛ چای گرم است، پنجره باز. ۱۲۳۴ گچ پژ",
    "Urdu": "لاہور دریائے راوی کے کنارے آباد ہے۔ کیا آپ چائے پیتے ہیں؟ ٹماٹر، ڈاک، گھڑی، ںے۔",
    "Pashto": "کابل د افغانستان پلازمېنه ده. ښه ورځ! ځمکه، څوک، ړوند، ږیره، ۍ.",
    "Sindhi": "سنڌو ندي سمنڊ ۾ ڇوڙ ڪري ٿي. ڪتاب، ڳوٺ، ڃ، ڄ، ۽ ٻيو.",
    "Uyghur": "ئۈرۈمچى چوڭ شەھەر. كىتاب، ئۆي، ۋە، ھاۋا، ئېلىم.",
    "Kurdish, Sorani": "هەولێر شارێکی کۆنە. ڕۆژ باش! گوڵ، ڵ، ێ، ۆ، وو.",
    "Hebrew": "ירושלים עיר עתיקה. מה השעה? השמש זורחת והים שקט. צה״ל, ג׳ירפה, ת״א: שלום!",
    "Hebrew, with vowels": "שָׁלוֹם, הַיֶּלֶד קוֹרֵא סֵפֶר. בְּרֵאשִׁית, חׇכְמָה, שִׂמְחָה, לֹא.",
    "Yiddish": "די זון שײַנט הײַנט. ווי גייט עס? אַ ייִדישע שפּראַך; קאָפּ, װאָס, ױ, ײ.",
    "Syriac": "ܫܠܡܐ ܥܠܝܟܘܢ. ܟܬܒܐ ܗܘ ܛܒܐ؛ ܫܡܫܐ ܘܣܗܪܐ.",
    "Dhivehi": "މާލެއަކީ ދިވެހިރާއްޖޭގެ ވެރިރަށެވެ. ކިހިނެއް؟ ރަނގަޅު.",
    "N'Ko": "ߒߞߏ ߛߓߍߛߎ߲. ߓߌ߬ ߟߏ߲ ߣߌ߲߬؛ ߁߂߃.",
}

# Syllables built of consonants and dependent vowels, with viramas and joiners.
SOUTH_ASIA: Mapping[str, str] = {
    "Hindi": "गंगा हिमालय से निकलती है। क्या आप चाय पीते हैं? हाँ, ज़रूर! श्री कृष्ण, क्षत्रिय, ज्ञान, ऋषि, १२३।",
    "Marathi": "मुंबई समुद्राच्या काठी आहे. आज ऊन आहे; मुले शाळेत जातात. र्\u200dय, ऱ्हास, ळ.",
    "Nepali": "सगरमाथा संसारको सबैभन्दा अग्लो हिमाल हो। तपाईंलाई कस्तो छ? धन्यवाद।",
    "Sanskrit": "सूर्यः पूर्वस्यां दिशि उदेति। नदी समुद्रं गच्छति॥ ॐ, ऽ, ॠ, ॡ, क॑ख॒।",
    "Bengali": "পদ্মা একটি বড় নদী। আজ কি বৃষ্টি হবে? হ্যাঁ, সম্ভবত। ক্ষ, জ্ঞ, ৎ, র্\u200dয, ১২৩।",
    "Assamese": "ব্ৰহ্মপুত্ৰ এখন ডাঙৰ নদী। আপোনাৰ নাম কি? ৱ, ৰ, ক্ষ।",
    "Punjabi": "ਪੰਜਾਬ ਪੰਜ ਦਰਿਆਵਾਂ ਦੀ ਧਰਤੀ ਹੈ। ਕੀ ਹਾਲ ਹੈ? ਠੀਕ ਹੈ; ਬੱਚੇ ਖੇਡਦੇ ਹਨ, ੧੨੩।",
    "Gujarati": "નર્મદા ગુજરાતની મોટી નદી છે. તમે કેમ છો? હું મજામાં છું; ક્ષ, જ્ઞ, ૧૨૩.",
    "Odia": "ମହାନଦୀ ଓଡ଼ିଶାର ବଡ଼ ନଦୀ। ଆପଣ କେମିତି ଅଛନ୍ତି? ଭଲ ଅଛି; କ୍ଷ, ୧୨୩।",
    "Tamil": "காவிரி ஆறு கடலில் கலக்கிறது. நீங்கள் எப்படி இருக்கிறீர்கள்? நன்றாக; க்ஷ, ஸ்ரீ, கௌ, ௧௨௩.",
    "Telugu": "గోదావరి పెద్ద నది. మీరు ఎలా ఉన్నారు? బాగున్నాను; క్ష, జ్ఞ, స్త్రీ, ౧౨౩.",
    "Kannada": "ಕಾವೇರಿ ನದಿ ಕೊಡಗಿನಲ್ಲಿ ಹುಟ್ಟುತ್ತದೆ. ನೀವು ಹೇಗಿದ್ದೀರಿ? ಚೆನ್ನಾಗಿದ್ದೇನೆ; ಕ್ಷ, ೧೨೩.",
    "Malayalam": "കേരളത്തിൽ ധാരാളം മഴ പെയ്യുന്നു. സുഖമാണോ? അതെ; ൻ, ൽ, ർ, ൺ, ക്ഷ, ന്\u200d, ൧൨൩.",
    "Sinhala": "කොළඹ මුහුද අසල පිහිටා ඇත. ඔබට කොහොමද? හොඳයි; ශ්\u200dරී, ක්\u200dෂ, ඤ, ඥ.",
    "Meitei": "ꯃꯅꯤꯄꯨꯔ ꯑꯁꯤ ꯐꯖꯩ꯫ ꯏꯝꯐꯥꯜ, ꯱꯲꯳.",
    "Santali": "ᱚᱞ ᱪᱤᱠᱤ ᱛᱮ ᱚᱞ ᱢᱮ᱾ ᱥᱟᱱᱛᱟᱲᱤ, ᱑᱒᱓.",
    "Tibetan": "ལྷ་ས་ནི་ས་མཐོ་བའི་གྲོང་ཁྱེར་ཞིག་ཡིན། བཀྲ་ཤིས་བདེ་ལེགས། ༡༢༣ ༄༅།།",
}

# No spaces between words, stacked marks, tones.
SOUTH_EAST_ASIA: Mapping[str, str] = {
    "Thai": "กรุงเทพฯ ตั้งอยู่ริมแม่น้ำเจ้าพระยา วันนี้ฝนตกไหม? ไม่ตก เด็ก ๆ เล่นน้ำ ๑๒๓ ก็ได้ น้ำ กำ",
    "Lao": "ວຽງຈັນຕັ້ງຢູ່ແຄມແມ່ນ້ຳຂອງ. ສະບາຍດີບໍ? ສະບາຍດີ; ໜັງສື, ໝາ, ໆ, ໑໒໓.",
    "Khmer": "ភ្នំពេញស្ថិតនៅមាត់ទន្លេមេគង្គ។ សុខសប្បាយទេ? បាទ សុខសប្បាយ; ស្ត្រី, ក្ដី, ១២៣។",
    "Burmese": "ရန်ကုန်သည် မြို့ကြီးဖြစ်သည်။ နေကောင်းလား။ နေကောင်းပါတယ်၊ ကျေးဇူးပါ၊ ၁၂၃။",
    "Shan": "မိူင်းတႆးမီးလွႆသုင်။ မႂ်ႇသုင်ၶႃႈ",
    "Javanese": "ꦱꦸꦒꦼꦁꦫꦮꦸꦃ꧈ ꦧꦱꦗꦮ꧉ ꧑꧒꧓",
    "Balinese": "ᬩᬲᬩᬮᬶ᭞ ᬒᬁᬲ᭄ᬯᬲ᭄ᬢ᭄ᬬᬲ᭄ᬢᬸ᭟ ᭑᭒᭓",
    "Cham": "ꨀꨇꩉ ꨌꩌ꩝ ꩑꩒꩓",
}

# Thousands of characters without cases, syllables, full-width forms.
EAST_ASIA: Mapping[str, str] = {
    "Chinese, simplified": "长江是亚洲最长的河流。你吃饭了吗？还没有，等一会儿。《红楼梦》、“引号”、……——这些都是标点。",
    "Chinese, traditional": "玉山是臺灣最高的山。你要喝茶嗎？好，謝謝！「引號」、『書名』，龜、鬱、灣、體。",
    "Chinese, Cantonese": "香港好多人講廣東話。你食咗飯未呀？食咗喇，唔該晒！佢哋喺嗰度，冇嘢做。",
    "Chinese, classical": "山高水深，其色青青。春有花，秋有月，冬則雪也。",
    "Chinese, rare": "𠮷野家、𡈽、𪚥、㐀、䶵、龘、𰻝𰻝麵、〇",
    "Chinese with Latin": "我用Python3写了一个tokenizer，它在GPU上跑得很快，大约2.5倍。",
    "Japanese": "富士山は日本で一番高い山です。お茶を飲みますか？はい、飲みます。カタカナ、ひらがな、漢字、々、ー。",
    "Japanese, half and full width": "ﾊﾝｶｸｶﾀｶﾅ ﾞﾟ ＡＢＣ１２３！？　全角の空白、㍻、㈱、①②③、～〜",
    "Japanese, voiced marks apart": "か\u3099き\u3099く\u3099 は\u309aひ\u309a 〱〲 ゝゞ ヽヾ",
    "Japanese, archaic kana": "ゐゑヰヱ𛀁𛀂 てふてふ、けふ、にほひ",
    "Korean": "한강은 서울을 지나 흐른다. 밥 먹었어요? 네, 먹었어요! 닭, 값, 읽다, 꽃잎, 쌍둥이. 漢字도 쓴다.",
    "Korean, decomposed": "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165, ㄱㄴㄷ ㅏㅑㅓ ㅋㅋㅋ ㅠㅠ",
    "Bopomofo": "ㄅㄆㄇㄈ ㄓㄨㄥ ㄍㄨㄛˊ ㄏㄨㄚˋ",
    "Yi": "ꆈꌠꁱꂷ ꀀꀁꀂ ꒐",
}

OTHER_SCRIPTS: Mapping[str, str] = {
    "Mongolian": "Улаанбаатар бол Монгол Улсын нийслэл. Өнөөдөр хүйтэн байна; үг, өвөл, түүх.",
    "Mongolian, traditional": "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ᠌᠂ ᠰᠠᠶᠢᠨ ᠤᠤ᠃ ᠨᠢᠭᠡ\u180e",
    "Kazakh": "Алматы тау бөктерінде орналасқан. Қалайсың? Жақсы; ән, өзен, үй, ұл, іні, ғалым, Һ, ң.",
    "Amharic": "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት። እንዴት ነህ? ደህና ነኝ፤ ቡና እወዳለሁ፣ ፩፪፫።",
    "Tigrinya": "ኣስመራ ርእሰ ከተማ ኤርትራ እያ። ከመይ ኣለኻ? ጽቡቕ።",
    "Tifinagh": "ⴰⵣⵓⵍ ⴼⵍⵍⴰⵡⵏ. ⵜⴰⵎⴰⵣⵉⵖⵜ ⵜⴳⴰ ⵜⵓⵜⵍⴰⵢⵜ.",
    "Cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ. ᎣᏏᏲ! ꭳꮟᏺ, ᏩᏙ.",
    "Inuktitut": "ᓄᓇᕗᑦ ᐊᖏᔪᖅ. ᖃᓄᐃᑉᐱᑦ? ᖃᓄᐃᙱᑦᑐᖓ.",
    "Cree": "ᑖᓂᓯ᙮ ᓀᐦᐃᔭᐍᐏᐣ ᒥᔪ ᑮᓯᑲᐤ᙮",
    "Vai": "ꕙꔤ ꕞꕢꕌ ꘡꘢꘣",
    "Adlam": "\U0001e900\U0001e923\U0001e924\U0001e922\U0001e925 \U0001e932\U0001e935 \U0001e951\U0001e952",
    "Osage": "\U000104b0\U000104b3\U000104d8\U000104db \U000104cf\U000104f7",
    "Gothic": "\U00010332\U0001033f\U00010344\U00010330 \U00010330\U00010339\U00010338",
    "Runes": "ᚠᚢᚦᚨᚱᚲ᛫ᚷᚹ᛬ᚺᚾᛁ᛭ ᛮᛯᛰ",
    "Ogham": "᚛ᚑᚌᚐᚋ᚜ ᚁᚂᚃ\u1680ᚄᚅ",
    "Cuneiform": "\U00012000\U00012038\U000120fb \U00012400\U00012401\U00012470",
    "Hieroglyphs": "\U00013000\U00013080\U00013171 \U00013430\U000131cb",
    "Linear B": "\U00010000\U00010001\U00010080 \U00010100\U00010107",
    "Braille": "⠠⠓⠑⠇⠇⠕⠂ ⠺⠕⠗⠇⠙⠖",
    "Deseret": "\U00010400\U00010428\U00010414\U0001043c",
    "mixed in one line": "Das Wort мир heißt 和平, سلام, שלום, शांति, ειρήνη und 평화; in Tokio (東京) sagt man へいわ.",
    "mixed in one word": "pаypal, Ηello, ｗｉｄｅ, nаïve, мiр, ﬁnance, ℌello, 𝓼𝓬𝓻𝓲𝓹𝓽, Z̷a̶l̵g̴o̷",
}

LANGUAGES: Mapping[str, str] = {
    **LATIN,
    **EUROPE_AND_CAUCASUS,
    **RIGHT_TO_LEFT,
    **SOUTH_ASIA,
    **SOUTH_EAST_ASIA,
    **EAST_ASIA,
    **OTHER_SCRIPTS,
}
