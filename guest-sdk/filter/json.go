package filter

import (
	"strconv"
	"unicode/utf8"
)

// json.go reads JSON (RFC 8259), strictly: what encoding/json would guess at, such as
// invalid UTF-8, half a surrogate pair, or the same key twice, is an error. It exists
// because encoding/json with its reflection adds over a megabyte to a guest.

// Limits of a configuration.
const (
	maxConfig = 1 << 20 // octets
	maxDepth  = 32
	maxNodes  = 1 << 16
	maxKeys   = 4096 // of one object; they are compared with each other
)

// kind is the kind of a JSON value.
type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindList
	kindObject
)

var kindNames = [...]string{"null", "true or false", "a number", "a string", "a list", "an object"}

// node is a JSON value.
type node struct {
	kind     kind
	text     string // of a string, what it means; else the JSON text
	list     []node // elements of a list, values of an object
	keys     []string
	from, to int // where it stands in the input
}

// get returns the value of a key of an object; nil if it is missing or null.
func (n *node) get(key string) *node {
	for i, k := range n.keys {
		if k == key && n.list[i].kind != kindNull {
			return &n.list[i]
		}
	}
	return nil
}

// parser reads one JSON text.
type parser struct {
	in    string
	at    int
	depth int
	nodes int
}

// parseJSON reads a whole text.
func parseJSON(in string) (node, error) {
	p := &parser{in: in}
	if len(in) > maxConfig {
		return node{}, p.fail("too long")
	}
	n, err := p.value()
	if err != nil {
		return node{}, err
	}
	if p.space(); p.at < len(p.in) {
		return node{}, p.fail("text behind the end")
	}
	return n, nil
}

func (p *parser) fail(what string) error {
	return text("filter: configuration: " + what + " at octet " + strconv.Itoa(p.at))
}

func (p *parser) space() {
	for p.at < len(p.in) && isSpace(p.in[p.at]) {
		p.at++
	}
}

// peek returns the next octet behind white space, 0 at the end.
func (p *parser) peek() byte {
	if p.space(); p.at < len(p.in) {
		return p.in[p.at]
	}
	return 0
}

// take skips c if it is next behind white space.
func (p *parser) take(c byte) bool {
	if p.peek() != c || p.at == len(p.in) {
		return false
	}
	p.at++
	return true
}

func (p *parser) value() (n node, err error) {
	if p.nodes++; p.nodes > maxNodes {
		return n, p.fail("too many values")
	}
	c := p.peek()
	n.from = p.at
	switch {
	case c == '{':
		n.kind = kindObject
		err = p.nested('}', func() error { return p.member(&n) })
	case c == '[':
		n.kind = kindList
		err = p.nested(']', func() error { return p.element(&n) })
	case c == '"':
		n.kind = kindString
		n.text, err = p.str()
	case c == '-' || '0' <= c && c <= '9':
		n.kind = kindNumber
		n.text, err = p.number()
	default:
		n.kind, n.text, err = p.word()
	}
	n.to = p.at
	return n, err
}

// nested reads what is between brackets, items separated by commas.
func (p *parser) nested(end byte, item func() error) error {
	p.at++
	if p.depth++; p.depth > maxDepth {
		return p.fail("too deep")
	}
	defer func() { p.depth-- }()
	if p.take(end) {
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		if p.take(end) {
			return nil
		}
		if !p.take(',') {
			return p.fail("want a comma or the end of the list or object")
		}
	}
}

func (p *parser) element(n *node) error {
	e, err := p.value()
	n.list = append(n.list, e)
	return err
}

func (p *parser) member(n *node) error {
	if p.peek() != '"' {
		return p.fail("want a key")
	}
	key, err := p.str()
	if err != nil {
		return err
	}
	if len(n.keys) == maxKeys {
		return p.fail("too many keys")
	}
	for _, k := range n.keys {
		if k == key {
			return p.fail("key " + strconv.Quote(key) + " a second time")
		}
	}
	if !p.take(':') {
		return p.fail("want a colon")
	}
	n.keys = append(n.keys, key)
	return p.element(n)
}

func (p *parser) word() (kind, string, error) {
	for _, w := range [...]string{"null", "true", "false"} {
		if len(p.in)-p.at >= len(w) && p.in[p.at:p.at+len(w)] == w {
			p.at += len(w)
			if w == "null" {
				return kindNull, w, nil
			}
			return kindBool, w, nil
		}
	}
	return 0, "", p.fail("want a value")
}

// number reads RFC 8259, Section 6.
func (p *parser) number() (string, error) {
	from := p.at
	p.one("-")
	if !p.one("0") && p.digits() == 0 {
		return "", p.fail("bad number")
	}
	if p.one(".") && p.digits() == 0 {
		return "", p.fail("bad number")
	}
	if p.one("eE") {
		p.one("+-")
		if p.digits() == 0 {
			return "", p.fail("bad number")
		}
	}
	return p.in[from:p.at], nil
}

// one skips the next octet if it is of set.
func (p *parser) one(set string) bool {
	for i := range len(set) {
		if p.at < len(p.in) && p.in[p.at] == set[i] {
			p.at++
			return true
		}
	}
	return false
}

func (p *parser) digits() (n int) {
	for p.one("0123456789") {
		n++
	}
	return n
}

// str reads a string. Most have no escapes and are a part of the input.
func (p *parser) str() (string, error) {
	p.at++
	from := p.at
	for p.at < len(p.in) {
		switch c := p.in[p.at]; {
		case c == '"':
			s := p.in[from:p.at]
			p.at++
			return p.valid(s)
		case c == '\\':
			return p.escaped([]byte(p.in[from:p.at]))
		case c < ' ':
			return "", p.fail("control character in a string")
		}
		p.at++
	}
	return "", p.fail("string without an end")
}

func (p *parser) valid(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", p.fail("string is not UTF-8")
	}
	return s, nil
}

// escaped reads the rest of a string of which out is the front.
func (p *parser) escaped(out []byte) (string, error) {
	for p.at < len(p.in) {
		c := p.in[p.at]
		p.at++
		switch {
		case c == '"':
			return p.valid(string(out))
		case c < ' ':
			return "", p.fail("control character in a string")
		case c != '\\':
			out = append(out, c)
		default:
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		}
	}
	return "", p.fail("string without an end")
}

// escape reads what follows a backslash.
func (p *parser) escape() (rune, error) {
	if p.at == len(p.in) {
		return 0, p.fail("string without an end")
	}
	c := p.in[p.at]
	p.at++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		return p.unicode()
	}
	return 0, p.fail("bad escape")
}

// unicode reads four digits, and the second half of a surrogate pair.
func (p *parser) unicode() (rune, error) {
	hi, ok := p.hex4()
	switch {
	case !ok || 0xdc00 <= hi && hi < 0xe000:
		return 0, p.fail("bad escape")
	case hi < 0xd800 || hi >= 0xe000:
		return hi, nil
	}
	if !p.one("\\") || !p.one("u") {
		return 0, p.fail("half a surrogate pair")
	}
	lo, ok := p.hex4()
	if !ok || lo < 0xdc00 || lo >= 0xe000 {
		return 0, p.fail("half a surrogate pair")
	}
	return 0x10000 + (hi-0xd800)<<10 + (lo - 0xdc00), nil
}

func (p *parser) hex4() (rune, bool) {
	if len(p.in)-p.at < 4 {
		return 0, false
	}
	n, ok := hex16(p.in[p.at : p.at+4])
	p.at += 4
	return rune(n), ok
}
