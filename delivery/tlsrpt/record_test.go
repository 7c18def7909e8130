package tlsrpt

import (
	"errors"
	"strings"
	"testing"
)

func TestParseRecord(t *testing.T) {
	for _, c := range []struct {
		texts string // separated by |
		want  string // destinations, or none, or bad
	}{
		{"v=TLSRPTv1; rua=mailto:reports@example.com", "mailto:reports@example.com"},
		{"v=TLSRPTv1;rua=mailto:reports@example.com;", "mailto:reports@example.com"}, // the delimiter may end it
		{"v=TLSRPTv1; rua=https://reporting.example.com/v1/tlsrpt", "https://reporting.example.com/v1/tlsrpt"},
		{"v=TLSRPTv1; rua=mailto:a@example.com , https://r.example/", "mailto:a@example.com https://r.example/"},
		{"v=TLSRPTv1 ;\trua=mailto:a@example.com", "mailto:a@example.com"}, // field-delim has white space on both sides
		{"v=TLSRPTv1; rua=mailto:a@example.com; ext.1=x:y; b_c=d", "mailto:a@example.com"},
		{"v=TLSRPTv1; rua=mailto:a%2Bb@example.com", "mailto:a+b@example.com"},
		{"v=TLSRPTv1; rua=mailto:a@example.com?subject=x", "mailto:a@example.com"},
		{"v=spf1 -all|v=TLSRPTv1; rua=mailto:a@example.com", "mailto:a@example.com"}, // others are discarded
		{"v=TLSRPTv1; rua=mailto:a@example.com,ftp://x/", "mailto:a@example.com"},    // what we cannot do is left out
		{"v=TLSRPTv1; rua=https://r.example/#x", "https://r.example/"},

		{"", "none"},
		{"v=tlsrptv1; rua=mailto:a@example.com", "none"},                                     // %s"v=TLSRPTv1": the case counts
		{"v=TLSRPTv11; rua=mailto:a@example.com", "none"},                                    // another version
		{" v=TLSRPTv1; rua=mailto:a@example.com", "none"},                                    // it must begin with it
		{"v=TLSRPTv1; rua=mailto:a@example.com|v=TLSRPTv1; rua=mailto:b@example.com", "bad"}, // several: there is none
		{"v=TLSRPTv1;", "bad"},
		{"v=TLSRPTv1; rua=", "bad"},
		{"v=TLSRPTv1;; rua=mailto:a@example.com", "bad"}, // an empty field
		{"v=TLSRPTv1; rua=mailto:a@example.com; =x", "bad"},
		{"v=TLSRPTv1; rua=mailto:a@example.com; x", "bad"},
		{"v=TLSRPTv1; rua=mailto:a@example.com; x=a=b", "bad"},
		{"v=TLSRPTv1; rua=http://r.example/", "bad"},          // not encrypted
		{"v=TLSRPTv1; rua=https://user:pw@r.example/", "bad"}, // we log in nowhere
		{"v=TLSRPTv1; rua=mailto:a@[192.0.2.1]", "bad"},
		{"v=TLSRPTv1; rua=mailto:user%25elsewhere.test@example.com", "bad"}, // to be sent on
		{"v=TLSRPTv1; rua=mailto:%22user@elsewhere.test%22@example.com", "bad"},
		{"v=TLSRPTv1; rua=mailto:a%3Fb@example.com", "bad"},
		{"v=TLSRPTv1; rua=mailto:a%0D%0Ab@example.com", "bad"},
		{"v=TLSRPTv1; rua=mailto:" + strings.Repeat("a", 5000) + "@example.com", "bad"},
	} {
		var texts []string
		if c.texts != "" {
			texts = strings.Split(c.texts, "|")
		}
		all, err := ParseRecord(texts)
		var words []string
		for _, d := range all {
			words = append(words, d.String())
		}
		got := strings.Join(words, " ")
		switch {
		case errors.Is(err, ErrNoRecord):
			got = "none"
		case errors.Is(err, ErrBadRecord):
			got = "bad"
		case err != nil:
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: got %s, want %s", c.texts, got, c.want)
		}
	}
}

// FuzzParseRecord: a destination that comes out is one, written again.
func FuzzParseRecord(f *testing.F) {
	f.Add("v=TLSRPTv1; rua=mailto:reports@example.com,https://r.example/x?y; ext=1")
	f.Add("v=TLSRPTv1;rua=mailto:%22a%20b%22@example.com")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ParseRecord([]string{text})
		if (err == nil) != (len(all) > 0) || len(all) > maxDestinations {
			t.Fatalf("%q: %v, %v", text, all, err)
		}
		for _, d := range all {
			if d.Address.IsNull() == (d.URL == "") {
				t.Fatalf("%q: %#v is not one of both", text, d)
			}
			if again, err := parseDestination(d.String()); err != nil || again != d {
				t.Fatalf("%q: %q is read as %q, %v", text, d.String(), again.String(), err)
			}
		}
	})
}
