// Command go has workloads in Go: what filters do, with the packages that they do it with.
// As in C, name(n) does its work n times and returns a sum of all that it found.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"hash/fnv"
	"net/mail"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func main() {}

// rng is xorshift, so that the input is the same everywhere.
type rng uint64

const seed rng = 88172645463325252

func (r *rng) next() uint32 {
	*r ^= *r << 13
	*r ^= *r >> 7
	*r ^= *r << 17
	return uint32(*r >> 16)
}

func (r *rng) word() string {
	b := make([]byte, 3+r.next()%8)
	for i := range b {
		b[i] = 'a' + byte(r.next()%26)
	}
	return string(b)
}

// text is n octets of lower-case words.
func text(n int) []byte {
	r := seed
	var b []byte
	for len(b) < n {
		b = append(append(b, r.word()...), " \n"[r.next()%8/7])
	}
	return b[:n]
}

var body = text(64 << 10)

func sumOf(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}

// hash runs over octets in a loop of its own.
//
//go:wasmexport hash
func hash(n uint32) uint64 {
	sum := uint64(0)
	for i := range n {
		h := uint64(14695981039346656037)
		for _, c := range body {
			h = (h ^ uint64(c)) * 1099511628211
		}
		sum += h + uint64(i)
	}
	return sum
}

// find looks for words with package bytes.
//
//go:wasmexport find
func find(n uint32) uint64 {
	sum := uint64(1)
	for range n {
		for _, w := range []string{"winner", "casino", "the", "zyx"} {
			sum += uint64(bytes.Count(body, []byte(w))) * uint64(len(w))
		}
	}
	return sum
}

//go:wasmexport decode64
func decode64(n uint32) uint64 {
	sum := uint64(0)
	for i := range n {
		s := base64.StdEncoding.EncodeToString(body[i%16:][:16<<10])
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return 0
		}
		sum += sumOf(b)
	}
	return sum
}

//go:wasmexport decode_json
func decodeJSON(n uint32) uint64 {
	r := seed
	var texts []string
	for i := range 8 {
		texts = append(texts, `{"from": "`+r.word()+`@example.net", "size": `+strconv.Itoa(int(r.next()))+`, "tags": ["`+r.word()+`", "`+r.word()+
			`"], "score": 1.5e2, "more": {"n": `+strconv.Itoa(i)+`, "null": null, "yes": true}}`)
	}
	sum := uint64(0)
	for i := range n {
		var v struct {
			From  string         `json:"from"`
			Size  uint64         `json:"size"`
			Tags  []string       `json:"tags"`
			Score float64        `json:"score"`
			More  map[string]any `json:"more"`
		}
		if err := json.Unmarshal([]byte(texts[i%8]), &v); err != nil {
			return 0
		}
		sum += v.Size + sumOf([]byte(v.From+strings.Join(v.Tags, ","))) + uint64(v.Score) + uint64(v.More["n"].(float64))
	}
	return sum
}

var (
	address = regexp.MustCompile(`[a-z]+[aeiou][a-z]* [a-z]{3,5}\n`)
	link    = regexp.MustCompile(`(?i)https?://([a-z0-9.-]+)`)
)

//go:wasmexport match
func match(n uint32) uint64 {
	sum := uint64(1)
	for i := range n {
		b := body[int(i%8)*4096:][:4096]
		for _, at := range address.FindAllIndex(b, -1) {
			sum += uint64(at[1])
		}
		if link.Match(b) {
			sum++
		}
	}
	return sum
}

//go:wasmexport parse_mail
func parseMail(n uint32) uint64 {
	const msg = "Received: from a.example.net (a.example.net [192.0.2.1])\r\n\tby mx.example.com with ESMTPS; Fri, 1 Mar 2024 10:00:00 +0000\r\n" +
		"From: =?utf-8?q?J=C3=BCrgen?= <juergen@example.net>\r\nTo: \"A, B\" <ab@example.com>, c@example.com\r\nSubject: a long\r\n subject\r\n" +
		"Date: Fri, 01 Mar 2024 10:00:00 +0000\r\nMessage-ID: <1@example.net>\r\n\r\nhello\r\n"
	sum := uint64(0)
	for range n {
		m, err := mail.ReadMessage(strings.NewReader(msg))
		if err != nil {
			return 0
		}
		to, err := m.Header.AddressList("To")
		if err != nil {
			return 0
		}
		from, err := mail.ParseAddress(m.Header.Get("From"))
		if err != nil {
			return 0
		}
		sum += sumOf([]byte(from.Name + to[0].Name + to[1].Address + m.Header.Get("Subject")))
	}
	return sum
}

//go:wasmexport sort_words
func sortWords(n uint32) uint64 {
	r := seed
	words := make([]string, 500)
	for i := range words {
		words[i] = r.word()
	}
	sum := uint64(0)
	for range n {
		all := slices.Clone(words)
		slices.Sort(all)
		all = slices.Compact(all)
		sum = sum*31 + sumOf([]byte(all[len(all)/2])) + uint64(len(all))
	}
	return sum
}

// build makes a text of many small pieces, which the collector takes away again.
//
//go:wasmexport build
func build(n uint32) uint64 {
	sum := uint64(0)
	for i := range n {
		var b strings.Builder
		seen := make(map[string]int)
		r := seed
		for k := range 100 {
			w := r.word()
			seen[w[:2]] += k
			b.WriteString(strings.ToUpper(w) + "-" + strconv.Itoa(int(i)+k) + "; ")
		}
		for _, part := range strings.Split(b.String(), "; ") {
			sum += uint64(len(part)) * uint64(seen[strings.ToLower(part[:min(2, len(part))])]+1)
		}
	}
	return sum
}
