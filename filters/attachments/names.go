package main

import "strings"

// names.go: what a program makes of a file name, which is not what a person sees.

// defaultEndings are those of files that do something when they are opened: programs,
// scripts, installers, shortcuts, and what the systems open like them.
var defaultEndings = strings.Fields(`
	ade adp apk app application appref-ms appx appxbundle bat chm cmd com command cpl diagcab
	dll exe gadget hlp hta htc inf ins isp jar jnlp js jse ksh library-ms lnk mde msc msh msh1
	msh2 mshxml msi msix msixbundle msp mst msu ocx osd pif pkg ps1 ps1xml ps2 ps2xml psc1 psc2
	pyw pyzw reg scf scr sct search-ms settingcontent-ms shb shs sys theme vb vbe vbs vsmacros
	vxd wsc wsf wsh xbap xll xnk`)

// defaultTypes are media types of the same, and of messages that come in pieces, each of which
// looks harmless (RFC 2046, Section 5.2.2).
var defaultTypes = []string{
	"application/hta", "application/java-archive", "application/vnd.microsoft.portable-executable",
	"application/x-dosexec", "application/x-ms-installer", "application/x-ms-shortcut", "application/x-msdos-program",
	"application/x-msdownload", "application/x-msi", "message/partial",
}

// endings returns the endings, in lower case and without the dot, that a system may see in a
// file name: the last, or all of them.
//
// A name ends where the system says: Windows drops dots and spaces at the end, takes a colon
// for the name of a stream, and what is before a NUL (which came as U+FFFD) for the whole.
func endings(name string, all bool) []string {
	name = plain(name)
	if i := strings.LastIndexAny(name, `/\`); i >= 0 {
		name = name[i+1:]
	}
	var found []string
	for _, s := range []string{name, before(name, ":"), before(name, "\uFFFD")} {
		s = strings.TrimRight(s, ". ")
		for {
			i := strings.LastIndexByte(s, '.')
			if i < 0 {
				break
			}
			found = append(found, strings.Trim(s[i+1:], " "))
			if s = s[:i]; !all {
				break
			}
		}
	}
	return found
}

func before(s, mark string) string {
	s, _, _ = strings.Cut(s, mark)
	return s
}

// plain makes of a name what is compared: lower case, with ordinary letters, dots and spaces
// for those that only look different, and without what is not seen.
func plain(name string) string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		switch {
		case r >= '\uFF01' && r <= '\uFF5E': // full width
			return r - '\uFF01' + '!'
		case r == '\u2024', r == '\u3002', r == '\uFF61', r == '\uFE52':
			return '.'
		case r == '\u00A0', r >= '\u2000' && r <= '\u200A', r == '\u202F', r == '\u205F', r == '\u3000', r == '\t', r == '\n', r == '\r':
			return ' '
		case r == '\u00AD', r >= '\u200B' && r <= '\u200F', r >= '\u202A' && r <= '\u202E',
			r >= '\u2060' && r <= '\u206F', r == '\uFEFF', r >= '\uFE00' && r <= '\uFE0F':
			return -1
		}
		return r
	}, name))
}

// isDisguised tells whether a name is made to look like another: text whose direction is
// turned around, an ending that is pushed out of sight, one that is the number of a Windows
// component, and an encoded word (RFC 2047) that could not be read here.
func isDisguised(name string) bool {
	if strings.ContainsAny(name, "\u202B\u202D\u202E\u2067") {
		return true
	}
	name = plain(name)
	if strings.Contains(name, strings.Repeat(" ", 10)) || strings.HasSuffix(strings.TrimRight(name, ". "), "}") && strings.Contains(name, ".{") {
		return true
	}
	_, word, ok := strings.Cut(name, "=?")
	return ok && strings.Count(word, "?") >= 3 && strings.Contains(word, "?=")
}
