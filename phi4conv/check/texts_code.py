"""Pieces of programs, markup and data: indentation, operators, quoting, identifiers, line ends."""

from __future__ import annotations

from collections.abc import Mapping

PROGRAMS: Mapping[str, str] = {
    "Python": '''\
from collections import Counter


def most_common(words: list[str], *, count: int = 3) -> list[tuple[str, int]]:
    """The words that occur most often."""
    return Counter(word.lower() for word in words if not word.isspace()).most_common(count)


if __name__ == "__main__":
    print(f"{most_common(input().split())!r:>{40}}")
''',
    "Python with tabs": "def f(x):\n\tif x:\n\t\treturn [\n\t\t\tx ** 2,\t# squared\n\t\t]\n\n\treturn None\n",
    "Python with CRLF": (
        "class A:\r\n    b = 1\r\n\r\n    def c(self):\r\n        self.__b__ += 1  \r\n        return -1\r\n"
    ),
    "Python, mixed indentation": "if a:\n  \tb()\n \t c()\n\t  d()\n        e()\n",
    "Python prompt": ">>> 0.1 + 0.2\n0.30000000000000004\n>>> _ == .3\nFalse\n... \n",
    "Python traceback": (
        'Traceback (most recent call last):\n  File "<stdin>", line 1, in <module>\n'
        "ZeroDivisionError: division by zero\n"
    ),
    "Python literals": "rb'\\x00\\xff', u'\\u00e9', 0xFFp, 1_000.5e-3j, ..., not-a-name, @decorator, a:=b, x//y, ~z",
    "JavaScript": (
        "const twice = async (x) => {\n  const y = await fetch(`/api/${x}?q=${encodeURIComponent('ä')}`);\n"
        "  return y?.ok ?? !!x && x !== null;\n};\n"
    ),
    "JavaScript, minified": "!function(e,t){var n=e.a||(e.a={});for(var r=0;r<10;++r)n[r]=t(r)||void 0}(this,x=>x*x);",
    "TypeScript": (
        "type Maybe<T extends object> = { readonly [K in keyof T]?: T[K] | undefined };\nlet x!: Maybe<Foo>;\n"
    ),
    "regular expression": r"^(?:[^\s@]+@(?!-)[a-z0-9-]{1,63}(?<!-)\.)+[a-z]{2,}$ and /\\(\w+)\b/gi and \p{L}+",
    "JSON": '{"name": "phi", "sizes": [3.8, 14, -1e-7], "nested": {"empty": {}, "null": null, "é": "\\u00e9\\n"}}',
    "JSON, pretty": '{\n  "a": [\n    true,\n    false\n  ],\n  "b": {\n    "c": "d"\n  }\n}\n',
    "JSON, minified": '[{"id":1,"t":"x"},{"id":2,"t":"y"},[[[[]]]],"\\\\\\"",""]',
    "JSON lines": '{"text":"a"}\n{"text":"b"}\n\n{"text":"\\ud83d\\ude42"}\n',
    "SQL": (
        "SELECT c.name, COUNT(*) AS n\nFROM customers c\nLEFT JOIN orders o ON o.customer_id = c.id\n"
        "WHERE c.city <> 'O''Fallon' AND o.total >= 99.95 -- large ones\nGROUP BY 1 HAVING COUNT(*) > 2;\n"
    ),
    "HTML": (
        '<!DOCTYPE html>\n<html lang="de">\n\t<head><meta charset="utf-8"><title>Gr&uuml;&szlig;e</title></head>\n'
        '\t<body class="a b" onclick=\'f("x")\'><br/>&nbsp;&#x1F642;<!-- note --></body>\n</html>\n'
    ),
    "XML": '<?xml version="1.0"?><a:b xmlns:a="urn:x"><![CDATA[ 1 < 2 && 3 > 2 ]]></a:b>',
    "CSS": "#main > .item:not(:first-child)::after {\n  margin: -0.5rem auto 0;\n  color: #ff00aa80 !important;\n}\n",
    "Markdown": (
        "# Title\n\n* one\n  * two `code`\n1. **bold** and _italic_, ~~struck~~\n\n> quote\n\n"
        '| a | b |\n|---|:-:|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n![alt](image.png "title") [^1]\n\n---\n'
    ),
    "reStructuredText": "Title\n=====\n\n.. note:: ``code`` and :ref:`link <target>`\n\n   * item\n",
    "YAML": (
        "---\nkey: &anchor\n  - 'it''s'\n  - \"tab\\t\"\nother: *anchor\ntext: |\n  line one\n\n  line three\n...\n"
    ),
    "TOML": '[tool."a.b"]\ndate = 1979-05-27T07:32:00Z\nfloats = [+1.0, inf, nan, 6.626e-34]\n[[table]]\n',
    "INI": "; comment\n[section]\nkey=value with spaces  \npath = C:\\Users\\me\\file.txt\n",
    "CSV": 'id,name,"quoted, comma"\r\n1,"say ""hi""",\r\n2,,3.14\r\n',
    "TSV": "a\tb\t\tc\n1\t2\t\t3\n",
    "Rust": (
        "fn longest<'a>(x: &'a str, y: &'a str) -> &'a str {\n    match x.len().cmp(&y.len()) {\n"
        "        Ordering::Less => y,\n        _ => x,\n    }\n}\n#[derive(Debug)]\nstruct P(u8, [f32; 4_096]);\n"
    ),
    "Go": (
        'func main() {\n\tif err := run(ctx, os.Args[1:]...); err != nil {\n\t\tlog.Fatalf("%+v\\n", err)\n\t}\n'
        "\tch <- 1\n}\n"
    ),
    "C": (
        "#include <stdio.h>\n#define MAX(a, b) ((a) > (b) ? (a) : (b))\n\nint main(int argc, char **argv)\n{\n"
        '\tunsigned long long n = 0xDEADBEEFull >> 3;\n\tprintf("%llu%%\\n", n);\t/* done */\n'
        "\treturn argv[argc] != NULL;\n}\n"
    ),
    "C++": (
        "template <typename T, std::size_t N = 4>\nconstexpr auto sum(const std::array<T, N>& a) noexcept -> T {\n"
        "    return std::accumulate(a.begin(), a.end(), T{}, [](auto x, auto&& y) { return x + y; });\n}\n"
    ),
    "C#": 'public record Point(int X, int Y) { public double Length => Math.Sqrt(X * X + Y * Y); } // $"{x,8:F2}"\n',
    "Java": (
        "@Override\npublic Map<String, List<? extends Number>> getAll() throws IOException {\n"
        "    return Stream.of(1, 2L, .5f).collect(Collectors.groupingBy(Object::toString));\n}\n"
    ),
    "Kotlin": (
        'val x = list?.firstOrNull { it.name == "a" } ?: return@label\nwhen (x) { is Int -> x..10; else -> !x!! }\n'
    ),
    "Swift": 'guard let url = URL(string: "https://a.b/\\(path)") else { throw E.bad }\nlet f = { $0 + $1 }\n',
    "PHP": "<?php\n$a = $_GET['q'] ?? null;\necho <<<EOT\n{$a->b['c']}\nEOT;\n?>\n",
    "Ruby": '%w[a b].each_with_index { |x, i| puts "#{i}: #{x}" unless x =~ /\\Ab/ }\n:sym => @@count ||= 0\n',
    "Perl": 'my %h = map { $_ => 1 } grep { !/^\\s*#/ } <STDIN>;\n$s =~ s{(\\d+)}{$1*2}gex; print "@{[keys %h]}\\n";\n',
    "Lua": "local t = {1, 2, ['k'] = [[long\nstring]]}\nfor i, v in ipairs(t) do print(i .. ': ' .. v) end -- #t\n",
    "R": "df %>% filter(x != 'a' & !is.na(y)) |> lm(y ~ x + I(x^2), data = _) -> fit; fit$coef[[\"x\"]]\n",
    "Julia": "f(x::T) where {T<:Real} = x .^ 2 .+ α₁ |> sqrt\n@assert f(3) ≈ √9 + 0im\n",
    "Haskell": (
        "primes :: [Integer]\nprimes = sieve [2..] where sieve (p:xs) = p : sieve [x | x <- xs, x `mod` p /= 0]\n"
    ),
    "OCaml": "let rec map f = function [] -> [] | x :: xs -> let y = f x in y :: map f xs;;\n(* 'a list *)\n",
    "Lisp": "(defun fact (n) (if (<= n 1) 1 (* n (fact (1- n))))) ; '(quoted . pair) #'car `(,@x)\n",
    "Clojure": '(->> (range 10) (filter odd?) (map #(* % %)) (reduce +)) ; {:a 1 ::b 2} @atom ^{:doc "x"}\n',
    "Erlang": "loop(N) when N > 0 -> receive {Pid, <<X:8, _/binary>>} -> Pid ! {ok, X}, loop(N-1) end.\n",
    "Elixir": 'defp go([h | t]), do: h |> to_string() |> Kernel.<>("!") # ~r/x/ &(&1 + 1) %{a: 1}\n',
    "Prolog": "parent(X, Y) :- child(Y, X), \\+ X == Y, !.\n?- parent(X, _).\n",
    "Fortran": "      DO 10 I=1,N\n      A(I) = B(I)**2 .AND. .TRUE.\n   10 CONTINUE\n",
    "COBOL": "       MOVE WS-TOTAL TO WS-OUT.\n       PERFORM UNTIL WS-EOF = 'Y'\n",
    "assembly": "_start:\n\tmov\t$0x3c, %eax\n\txor\t%edi, %edi\n\tsyscall\t\t# exit(0)\n.L1: jmp .L1\n",
    "shell": (
        '#!/usr/bin/env bash\nset -euo pipefail\nfor f in "$@"; do\n  [[ -f $f ]] && sed -e \'s/\\bfoo\\b/bar/g\' "$f" '
        '| tee -a "${f%.*}.out" >/dev/null 2>&1 || exit $?\ndone\nx=$(( 1 << 4 )); echo "${x:-none}" `date +%s`\n'
    ),
    "PowerShell": 'Get-ChildItem -Recurse | Where-Object { $_.Length -gt 1KB } | % { "$($_.Name)`t$($_.Length)" }\r\n',
    "batch file": '@echo off\r\nfor %%f in (*.txt) do (\r\n  echo %%~nf ^& copy "%%f" %TEMP%\\\r\n)\r\n',
    "Makefile": 'all: $(OBJS)\n\t@$(CC) -o $@ $^ $(LDFLAGS)\n%.o: %.c\n\t$(CC) -c $< -DX=\\"y\\"\n.PHONY: all\n',
    "Dockerfile": (
        'FROM alpine:3.20 AS build\nRUN apk add --no-cache gcc \\\n    && rm -rf /var/cache/*\nCMD ["sh", "-c", "x"]\n'
    ),
    "diff": (
        "--- a/x.py\t2024-12-12\n+++ b/x.py\n@@ -1,3 +1,3 @@ def f():\n context\n-\told\n+\tnew\n"
        "\\ No newline at end of file\n"
    ),
    "git log": "commit 3f2a9c1 (HEAD -> main, tag: v1.0)\nAuthor: A <a@example.org>\n\n    Fix off-by-one (#12)\n",
    "LaTeX": (
        "\\begin{align}\n  \\int_{-\\infty}^{\\infty} e^{-x^2}\\,dx &= \\sqrt{\\pi} \\label{eq:g} \\\\\n"
        "  f'(x) &\\leq \\frac{a_{i,j}}{b^{2}} \\quad \\forall x \\in \\mathbb{R}\n\\end{align} % see~\\ref{eq:g}\n"
    ),
    "TeX in text": "Euler: $e^{i\\pi}+1=0$; also \\(a_1 \\ne a_2\\), \\[ \\sum_{k=0}^n k \\] and $$\\vec{v}$$.",
    "GLSL": "vec4 c = texture(u_tex, v_uv.xy * 2.0 - 1.0).rgba; gl_FragColor = mix(c, vec4(1.), .5);\n",
    "Verilog": "always @(posedge clk) if (!rst_n) q <= 4'b0; else q <= q + 1'b1; // 8'hFF\n",
    "GraphQL": "query Q($id: ID!) { node(id: $id) { ... on User { name @include(if: true) } } }\n",
    "protocol buffers": "message M { repeated int32 ids = 1 [packed = true]; oneof v { string s = 2; } }\n",
    "Jinja": "{% for m in messages -%}\n  {{ '<|' + m['role'] + '|>' ~ m.content | trim }}{# note #}\n{%- endfor %}\n",
    "nginx": 'location ~* \\.(png|jpe?g)$ { expires 30d; add_header X-A "b;c"; return 301 https://$host$uri; }\n',
    "crontab": "*/5 0-6 1,15 * 1-5 /usr/bin/run >> /var/log/x.log 2>&1\n",
}

FRAGMENTS: Mapping[str, str] = {
    "URL": "https://user:pw@example.org:8080/a/b%20c/?q=1&r=%C3%A9&s[]=x+y#frag~ment",
    "URLs in a sentence": "See http://example.org/, (https://example.org/a_(b)) or www.example.org...",
    "e-mail": 'From: "A. B." <a.b+tag@sub.example.co.uk>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\n',
    "HTTP": "GET /index.html HTTP/1.1\r\nHost: example.org\r\nAccept: */*;q=0.8\r\n\r\n",
    "paths": (
        "/usr/local/lib/python3.11/site-packages C:\\Program Files (x86)\\App\\ ~/.config ../../a.b.c //server/share"
    ),
    "names in every style": (
        "snake_case camelCase PascalCase kebab-case SCREAMING_CASE __dunder__ _private $dollar @at x1y2z3"
    ),
    "names with capitals": "HTTPServerError XMLHttpRequest iPhone eBay NaN McDonald OpenGL2ES3 aBcDeFgH ABCdef abcDEF",
    "operators": (
        "+= -= *= /= %= **= //= ++ -- == === != !== <= >= <=> << >> >>> && || ?? ?. :: -> => |> <- ~> ... ..= ##"
    ),
    "operators touching names": "a+=b;c->d;e::f<g>;h?.i??j;k===l;!m;n=>o;p||q&&r",
    "brackets": "((([[[{{{<<<>>>}}}]]]))) ()[]{}<> )( ][ }{ ([)]",
    "slashes": "// /// //// / \\ \\\\ \\\\\\ /* */ /** **/ /\n//\n\\\n/\r\n a/b/ c/\n\n/",
    "quotes": "' '' ''' '''' \" \"\" \"\"\" ` `` ``` 'a' \"b\" `c` \"it's\" '\"' \\' \\\"",
    "rules": "---- ==== **** #### ____ ~~~~ .... //// ++++ ---------------------------------------- ================",
    "box drawing": "┌──┬──┐\n│ a│ b│\n├──┼──┤\n└──┴──┘ ▀▄█░▒▓ ╔══╗ ╚══╝",
    "base64": "aGVsbG8gd29ybGQgZnJvbSBhIHRleHQ=AAECAwQFBgcICQoLDA0ODxAREhMUFRYX/+8=",
    "hash": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "UUID": "0b7e4c52-93d1-4f6a-8e20-5c1f9a7d3e64 {A1C09F3E-22B7-4D58-9E0C-7F61D2385BC4}",
    "hex dump": "00000000  47 47 55 46 03 00 00 00  1b 00 00 00 00 00 00 00  |GGUF............|\n",
    "log line": '2024-12-12T09:30:00.123456Z [ERROR] app[1234]: key="a b" took=1.5ms (x3) 127.0.0.1:8080 ::1\n',
    "ANSI colours": "\x1b[31mred\x1b[0m \x1b[1;32mbold green\x1b[0m\x1b[2K\r100%",
    "indentation that grows": "a\n b\n  c\n   d\n    e\n     f\n      g\n       h\n        i\n",
    "indentation by tabs that grows": "a\n\tb\n\t\tc\n\t\t\td\n\t\t\t\te\n\t\t\t\t\tf\n",
    "trailing spaces": "a \nb  \nc   \n\td\t\n \n  \n\n",
    "comment marks": '# a\n## b\n-- c\n; d\n% e\n// f\n/* g */\n<!-- h -->\nREM i\n"""j"""\n',
}

CODE: Mapping[str, str] = {**PROGRAMS, **FRAGMENTS}
