// Work with the standard library's containers as programs do it: most allocations are made in code that templates and
// inlining made, far below main, and nothing keeps a frame pointer. Ends by itself; keeps a little of everything.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <future>
#include <list>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

struct Shape {
    virtual ~Shape() = default;
    virtual std::string name() const = 0;
};
struct Round : Shape {
    std::string label = std::string(40, 'r');
    std::string name() const override { return label + "/round"; }
};
struct Square : Shape {
    std::vector<int> corners = std::vector<int>(9, 4);
    std::string name() const override { return std::to_string(corners.size()) + std::string(30, 's'); }
};

static std::unordered_map<std::string, std::shared_ptr<Shape>> kept;

static std::string describe(const std::map<int, std::list<std::string>> &groups)
{
    std::ostringstream out;
    for (const auto &[key, names] : groups)
        for (const auto &name : names)
            out << key << ':' << name << '\n';
    return out.str();
}

static std::uint64_t round_of_work(unsigned round)
{
    std::map<int, std::list<std::string>> groups;
    std::deque<std::unique_ptr<Shape>> shapes;
    std::set<std::string> seen;
    for (unsigned i = 0; i < 200; i++) {
        if ((i * 2654435761u + round) % 3 == 0)
            shapes.push_back(std::make_unique<Round>());
        else
            shapes.push_front(std::make_unique<Square>());
        groups[static_cast<int>(i % 17)].push_back(shapes.back()->name() + std::to_string(i));
        seen.insert(shapes.front()->name() + std::to_string(i % 50));
    }
    std::vector<std::function<std::string()>> calls;
    for (const auto &name : seen)
        calls.emplace_back([name, round] { return name + std::to_string(round); });
    std::stable_sort(calls.begin(), calls.end(), [](const auto &a, const auto &b) { return a() < b(); });
    std::uint64_t sum = describe(groups).size();
    for (const auto &call : calls)
        sum += call().size();
    static const std::regex pattern("([a-z]+)/([a-z]+)([0-9]+)");
    std::smatch match;
    const std::string text = describe(groups).substr(0, 300);
    if (std::regex_search(text, match, pattern))
        sum += match.size();
    kept["round " + std::to_string(round) + std::string(20, 'k')] = std::make_shared<Round>();
    return sum;
}

int main()
{
    std::uint64_t sum = 0;
    for (unsigned round = 0; round < 40; round++)
        sum += round_of_work(round);
    std::vector<std::future<std::uint64_t>> parts;
    for (unsigned part = 0; part < 4; part++)
        parts.push_back(std::async(std::launch::async, [part] {
            std::uint64_t own = 0;
            for (unsigned round = 0; round < 10; round++) {
                std::map<unsigned, std::string> map;
                for (unsigned i = 0; i < 300; i++)
                    map[i * 7 % 113] += std::to_string(i + part);
                own += map.size();
            }
            return own;
        }));
    for (auto &part : parts)
        sum += part.get();
    std::printf("%llu\n", static_cast<unsigned long long>(sum));
    return 0;
}
