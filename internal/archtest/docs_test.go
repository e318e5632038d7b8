package archtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"go/ast"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidegate/certs"
	"tidegate/config"
)

// block is one fenced block of a page.
type block struct {
	page string
	line int // of the opening fence
	lang string
	text string
}

// blocks returns every fenced block of the documentation, README.md and CHANGELOG.md included.
func blocks(t *testing.T) []block {
	t.Helper()
	var list []block
	walk(t, ".md", func(path string, data []byte) {
		var open *block
		var body strings.Builder
		for i, line := range strings.Split(string(data), "\n") {
			fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
			switch {
			case isFence && open == nil:
				open = &block{page: path, line: i + 1, lang: strings.TrimSpace(fence)}
				body.Reset()
			case isFence:
				open.text = body.String()
				list = append(list, *open)
				open = nil
			case open != nil:
				body.WriteString(line + "\n")
			}
		}
		if open != nil {
			t.Errorf("%s:%d: block without end", open.page, open.line)
		}
	})
	return list
}

// TestPagesThatMustExist: what a reader of the repository looks for first.
func TestPagesThatMustExist(t *testing.T) {
	for _, name := range []string{"README.md", "LICENSE", "CHANGELOG.md", "docs/architecture.md", "docs/dependencies.md", "docs/adr"} {
		if _, err := os.Stat(filepath.Join(root(t), name)); err != nil {
			t.Error(err)
		}
	}
}

// TestEveryDependencyHasItsReason: each library that go.mod names directly has a line in docs/dependencies.md.
func TestEveryDependencyHasItsReason(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(root(t), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root(t), "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, line := range strings.Split(string(mod), "\n") {
		m := regexp.MustCompile(`^\s*(?:require\s+)?([a-z0-9.]+\.[a-z]+/\S+) (v\S+)(\s*// indirect)?$`).FindStringSubmatch(line)
		if m == nil || m[3] != "" {
			continue
		}
		found++
		if !strings.Contains(string(page), m[1]) {
			t.Errorf("docs/dependencies.md says nothing about %s", m[1])
		}
		if !strings.Contains(string(page), strings.TrimPrefix(m[2], "v")) {
			t.Errorf("docs/dependencies.md does not name version %s of %s", m[2], m[1])
		}
	}
	if found == 0 {
		t.Error("found no direct dependency in go.mod")
	}
}

// TestLinksLeadSomewhere: links between our own pages and files exist.
func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	walk(t, ".md", func(path string, data []byte) {
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root(t), filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", path, m[1], err)
			}
		}
	})
}

var heredoc = regexp.MustCompile(`(?s)cat > \S+\.toml <<'?EOF'?\n(.*?)\nEOF\n`)

// TestConfigurationsInTheDocsAreValid: whoever copies a block of TOML, or a command that writes one, gets a configuration
// that the program takes.
func TestConfigurationsInTheDocsAreValid(t *testing.T) {
	found := 0
	dir := sampleFiles(t)
	for _, b := range blocks(t) {
		var texts []string
		switch b.lang {
		case "toml":
			texts = append(texts, b.text)
		case "sh":
			for _, m := range heredoc.FindAllStringSubmatch(b.text, -1) {
				texts = append(texts, m[1])
			}
		}
		for _, text := range texts {
			found++
			if _, err := config.Parse(filepath.Join(dir, "tidegate.toml"), []byte(text)); err != nil {
				t.Errorf("%s:%d: %v", b.page, b.line, err)
			}
		}
	}
	if found == 0 {
		t.Error("found no configuration in the documentation")
	}
}

// sampleFiles makes a folder with the files that configurations in the documentation name.
func sampleFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca, pair, err := certs.NewAuthority("of the documentation", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Server([]string{"localhost"}, certs.ServerLife, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	crl, err := ca.Revoke(nil, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "tls"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"tls/ca.crt": pair.Cert, "tls/server.crt": server.Cert, "tls/server.key": server.Key, "tls/devices.crl": crl,
		"gateway.crt":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"gateway.key":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		"cloud.password": []byte("a password"), "proxy.password": []byte("a password"),
		"device.sas": []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestExamplesAreValid: the configurations that ship as examples.
func TestExamplesAreValid(t *testing.T) {
	found := 0
	walk(t, ".toml", func(path string, data []byte) {
		if !strings.HasPrefix(path, filepath.Join("docs", "examples")) {
			return
		}
		found++
		if _, err := config.Parse(path, data); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	})
	if found == 0 {
		t.Error("found no examples")
	}
}

// TestCommandsInTheDocsExist: every `tidegate WORD` in the documentation is a command of this build.
func TestCommandsInTheDocsExist(t *testing.T) {
	known := commands(t)
	inText := regexp.MustCompile("`(?:\\./)?tidegate ([a-z]+)[^`]*`")
	inBlock := regexp.MustCompile(`(?m)(?:^|[|;&(]\s*|sudo )\s*(?:\./)?tidegate ([a-z]+)`)
	found := 0
	check := func(page, word string) {
		found++
		if !known[word] {
			t.Errorf("%s: `tidegate %s` is no command of this build", page, word)
		}
	}
	walk(t, ".md", func(path string, data []byte) {
		if path == "CHANGELOG.md" || strings.HasPrefix(path, "docs/adr/") {
			return // they speak of other times
		}
		for _, m := range inText.FindAllStringSubmatch(string(data), -1) {
			check(path, m[1])
		}
	})
	for _, b := range blocks(t) {
		if b.lang == "sh" {
			for _, m := range inBlock.FindAllStringSubmatch(b.text, -1) {
				check(b.page, m[1])
			}
		}
	}
	if found == 0 {
		t.Error("found no command in the documentation")
	}
}

// commands reads the names in the table of cmd/tidegate/main.go.
func commands(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{"help": true}
	for _, s := range sources(t) {
		if filepath.Dir(s.path) != "cmd/tidegate" || s.isTest() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			f, ok := n.(*ast.FuncDecl)
			if !ok {
				return true
			}
			if f.Name.Name == "commands" {
				ast.Inspect(f.Body, func(n ast.Node) bool {
					if lit, ok := n.(*ast.CompositeLit); ok && lit.Type == nil && len(lit.Elts) > 0 {
						if name, ok := literal(lit.Elts[0]); ok {
							known[name] = true
						}
					}
					return true
				})
			}
			return false
		})
	}
	if len(known) < 3 {
		t.Fatal("found no table of commands in cmd/tidegate")
	}
	return known
}

// TestMetricsInTheDocsExist: a metric that a page names is one that the program has, written out in the code or put together
// from two texts.
func TestMetricsInTheDocsExist(t *testing.T) {
	texts := map[string]bool{}
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if text, ok := literal(e); ok {
					texts[text] = true
				}
			}
			return true
		})
	}
	exists := func(name string) bool {
		for i := range name {
			if name[i] == '_' && texts[name[:i+1]] && texts[name[i+1:]] {
				return true
			}
		}
		return texts[name]
	}
	metric := regexp.MustCompile(`tidegate_[a-z_]+[a-z]`)
	walk(t, ".md", func(path string, data []byte) {
		for _, m := range metric.FindAllString(string(data), -1) {
			m = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(m, "_bucket"), "_count"), "_sum")
			if !exists(m) {
				t.Errorf("%s: metric %s is not in the code", path, m)
			}
		}
	})
}
